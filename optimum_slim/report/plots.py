"""Where marks stand in the plots of the page: shares of the width in per cent, so that a plot fits any screen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from optimum_slim.report.figures import FILES, judged, lower_is_better
from optimum_slim.report.report import Report, Row
from optimum_slim.report.words import milliseconds, number, point_name, size

PITCH = 46  # pixels from one row of a plot to the next
EDGES = (3.0, 97.0)  # where the worst and the best dot stand


@dataclass(frozen=True)
class Mark:
    """One row of a plot."""

    label: str
    told: str  # its value in words
    kind: str  # original | step | final | baseline_int8: its colour
    at: float  # where a bar ends or a dot stands
    until: float | None = None  # where the thin line behind a bar ends
    y: int = 0


@dataclass(frozen=True)
class Plot:
    """Bars from zero, or dots on a scale of their own."""

    title: str
    note: str
    marks: list[Mark]
    dots: bool = False
    ends: tuple[str, ...] = field(default=())  # the scale's first and last value, in words

    @property
    def height(self) -> int:
        return PITCH * len(self.marks) + (20 if self.dots else 2)


def stations(report: Report) -> Iterator[tuple[str, str, Row]]:
    """(label, kind, row) of everything that was sized or judged, in the order it came about, the baseline last."""
    yield FILES["original"], "original", report.original
    for index, step in enumerate(report.steps, 1):
        yield f"{index}. {step['technique']}", "step", step
    yield f"{FILES['final']}, {report.final['precision']}", "final", report.final
    if report.baseline_int8:
        yield FILES["baseline_int8"], "baseline_int8", report.baseline_int8


def size_plot(report: Report) -> Plot:
    found = [(label, kind, row.get("file_bytes") or row["predicted_bytes"]) for label, kind, row in stations(report)]
    largest = max(value for _, _, value in found)
    marks = [
        Mark(label, size(value) + (" predicted" if kind == "step" else ""), kind, 100 * value / largest)
        for label, kind, value in found
    ]
    note = "Of the ONNX file. Steps change the PyTorch model: the file it would make is predicted."
    return Plot("Size", note, _placed(marks))


def latency_plots(report: Report) -> Iterator[Plot]:
    """The point of the grid that decides; for a decoder both of its phases."""
    first = report.final["latency"][0]
    for at, point in enumerate(report.final["latency"]):
        if any(point[key] != first[key] for key in ("batch", "tokens", "threads")):
            continue
        files = [(kind, getattr(report, kind)) for kind in ("original", "final", "baseline_int8")]
        rows = [(kind, row["latency"][at]) for kind, row in files if "latency" in row]
        longest = max(row["p90"] for _, row in rows)
        marks = [
            Mark(FILES[kind], milliseconds(row["p50"]), kind, 100 * row["p50"] / longest, 100 * row["p90"] / longest)
            for kind, row in rows
        ]
        note = "Median of one call; the thin line goes to the 90th percentile."
        yield Plot(f"Latency of {point_name(point)}", note, _placed(marks))


def quality_plots(report: Report) -> Iterator[Plot]:
    """Each metric at every station that was judged by it."""
    for metric in report.final["quality"]:
        found = []
        for label, kind, row in stations(report):
            if metric in judged(row):
                found.append((label, kind, judged(row)[metric]))
        # The baseline may be ruined: it is no measure of what the steps did.
        own = [value for _, kind, value in found if kind != "baseline_int8" and math.isfinite(value)] or [0.0]
        low, high = min(own), max(own)
        lower = lower_is_better(report, metric)
        marks = []
        for label, kind, value in found:
            outside = " (off the scale)" if not low <= value <= high else ""
            marks.append(Mark(label, number(value) + outside, kind, _dot(value, low, high, lower)))
        note = (
            f"{'Lower is better; a logarithmic scale' if lower else 'Higher is better'}. Steps were judged in PyTorch."
        )
        ends = (number(low), number(high)) if high > low else (number(low),)
        yield Plot(metric, note, _placed(marks), dots=True, ends=ends)


def _dot(value: float, low: float, high: float, logarithmic: bool) -> float:
    """Where a value stands between `low` and `high`; beyond them at the edge, what is no number with the worst."""
    if math.isnan(value):
        value = math.inf if logarithmic else -math.inf
    value = min(max(value, low), high)
    if high <= low:
        return 50.0
    if logarithmic:
        value, low, high = math.log(value), math.log(low), math.log(high)
    left, right = EDGES
    return left + (right - left) * (value - low) / (high - low)


def _placed(marks: list[Mark]) -> list[Mark]:
    return [Mark(m.label, m.told, m.kind, round(m.at, 2), m.until and round(m.until, 2), PITCH * i)
            for i, m in enumerate(marks)]  # fmt: skip

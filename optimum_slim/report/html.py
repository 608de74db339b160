"""The report as one page, slim_report.html: it loads nothing, needs no script, and reads on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from optimum_slim.report.figures import (
    FILES,
    base_model,
    budget_rows,
    comparison,
    headline,
    judged_on,
    loss_words,
    lower_is_better,
    promises,
    worst_metric,
)
from optimum_slim.report.plots import latency_plots, quality_plots, size_plot
from optimum_slim.report.report import Report, Row
from optimum_slim.report.words import faster, milliseconds, number, point_name, size, smaller, template

# Each part's colour goes by its place here, the same on every page.
PARTS = ("embeddings", "attention", "feed-forward", "norms", "head", "other weights", "graph")


def write_html(report: Report, folder: Path) -> None:
    """Writes slim_report.html. Sections whose rows an older report lacks are left out."""
    page = template("report.html.jinja").render(
        report=report,
        base=base_model(report),
        files=FILES,
        headlines=list(headlines(report)),
        plots=[size_plot(report), *latency_plots(report), *quality_plots(report)],
        rows=comparison(report),
        parts=part_segments(report),
        layers=report.final.get("layers", []),
        grouped=any(row["heads"] != row["kv_heads"] for row in report.final.get("layers", [])),
        judged_on=judged_on(report),
        promises=promises(report),
        budget=budget_rows(report),
    )
    (folder / "slim_report.html").write_text(f"{page}\n", encoding="utf-8")


def headlines(report: Report) -> Iterator[Row]:
    """The figures that one reads first {figure, meaning, told}: how much smaller, how much faster, what was lost."""
    before, after = report.original, report.final
    figure, _, meaning = smaller(before["file_bytes"], after["file_bytes"]).partition(" ")
    told = f"{size(before['file_bytes'])} before, {size(after['file_bytes'])} after"
    yield {"figure": figure, "meaning": meaning, "told": told}
    for point in headline(report):
        if "speedup" not in point:
            yield {"figure": milliseconds(point["p50"]), "meaning": "a call", "told": point_name(point)}
            continue
        figure, _, interval = faster(point["speedup"]["vs_fp32"]).partition(" ")
        against = faster(point["speedup"]["vs_optimum_int8"])
        told = f"{interval.strip('()')}; {against} over Optimum's int8; for {point_name(point)}"
        yield {"figure": figure, "meaning": "as fast as fp32", "told": told}
    metric = worst_metric(report)
    if metric is not None:
        figure, _, fate = loss_words(report, metric, after).rpartition(" ")
        old, new = (number(row["quality"][metric]) for row in (before, after))
        told = f"{old} before, {new} after"
        meaning = f"{fate} {metric}" if lower_is_better(report, metric) else f"of {metric} {fate}"
        yield {"figure": figure, "meaning": meaning, "told": told}


def part_segments(report: Report) -> list[Row]:
    """What the file holds, largest first: {part, bytes, share, colour}."""
    rows = sorted(report.final.get("parts", []), key=lambda row: -row["bytes"])
    return [
        {
            **row,
            "share": 100 * row["bytes"] / report.final["file_bytes"],
            "colour": PARTS.index(row["part"]) if row["part"] in PARTS else PARTS.index("other weights"),
        }
        for row in rows
    ]

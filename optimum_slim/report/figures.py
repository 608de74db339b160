"""What a report says, as rows for a reader: which model it was, what it lost, and before against after."""

from __future__ import annotations

import math

from optimum_slim.report.report import Report, Row
from optimum_slim.report.words import count, faster, milliseconds, number, percent, point_name, size, smaller, times
from optimum_slim.tasks import TASKS

# The three files that are compared, in the order of every table.
FILES = {"original": "original, fp32", "baseline_int8": "Optimum's int8", "final": "optimum-slim"}

ROUNDING = 1e-5  # of the largest output: what sums of floats in another order differ by


def base_model(report: Report) -> Row:
    """The model as it was: {id, revision} on the Hub, null for a local folder, and {name, sha256}."""
    name, revision = report.model["name"], report.model.get("revision")
    return {"id": name if revision else None, "revision": revision, "name": name, "sha256": report.model["sha256"]}


def lower_is_better(report: Report, metric: str) -> bool:
    """Whether a metric falls when a model gets better, as perplexity does; such losses are told as a share."""
    task = TASKS[report.task]
    return task.relative and metric.split("/")[0] == task.metric


def judged(row: Row) -> Row:
    """The quality of a file or of a step, empty where it was not judged."""
    return row["quality_torch"] if "quality_torch" in row else row["quality"]


def loss(report: Report, metric: str, row: Row) -> float | None:
    """How much worse a file or step is than the original: points of a hundred, or per cent of a perplexity. Below zero
    where it is better; None where one of the two was not judged."""
    quality = judged(row)
    old, new = report.original["quality"].get(metric), quality.get(metric)
    if old is None or new is None or not math.isfinite(old):
        return None
    lost = 100 * (new / old - 1 if lower_is_better(report, metric) else old - new)
    return lost if not math.isnan(lost) else math.inf


def loss_words(report: Report, metric: str, row: Row) -> str:
    """`1.2 points lost`, `0.3 % higher`; empty where there is nothing to compare."""
    lost = loss(report, metric, row)
    if lost is None or math.isinf(lost):
        return "" if lost is None else "all lost"
    if lower_is_better(report, metric):
        return f"{abs(lost):.3g} % {'higher' if lost >= 0 else 'lower'}"
    return f"{abs(lost):.3g} points {'lost' if lost >= 0 else 'gained'}"


def worst_metric(report: Report) -> str | None:
    """Of the metric that decides, a task's first, the set that lost most; None where nothing was judged."""
    losses = {name: loss(report, name, report.final) for name in report.final["quality"]}
    deciding = next(iter(losses), "").split("/")[0]
    known = {name: lost for name, lost in losses.items() if lost is not None and name.split("/")[0] == deciding}
    return max(known, key=lambda name: known[name], default=None)


def judged_on(report: Report) -> str:
    """The texts behind the quality: `rt, test, at most 200 texts of each set`."""
    data = report.recipe["data"]
    unit = "blocks" if report.task == "text-generation" else "texts"
    limit = f", at most {data['limit']} {unit} of each set" if data.get("limit") else ""
    return f"{data['source']}, {data['evaluation']}{limit}"


def promises(report: Report) -> list[str]:
    """What an answer depends on besides its text, and whether a sum can overflow, a sentence each; none where an older
    report does not tell."""
    told = []
    for key, causes in (
        ("batch", "what else is in its batch"),
        ("padding", "how far it is padded"),
        ("threads", "whether one thread computes it or two"),
    ):
        if key in report.verify:
            changes = report.verify[key]
            much = f"by up to {percent(changes)} of the largest output" if changes >= ROUNDING else "but for rounding"
            depends = (
                f"An answer does not depend on {causes}" if changes < ROUNDING else f"An answer depends on {causes}"
            )
            told.append(depends + (", to the last bit." if changes == 0 else f", {much}."))
    if "saturating" in report.verify:
        some, all_ = report.verify["saturating"], report.verify["products"]
        if some:
            told.append(
                f"Sums of {some} of its {all_} products of 8-bit integers can overflow on x86 CPUs without VNNI, where "
                "answers then differ from those elsewhere."
            )
        elif all_:
            told.append(f"No sum of its {all_} products of 8-bit integers can overflow, on any CPU.")
    return told


def budget_rows(report: Report) -> list[Row]:
    """Rows of words {end, wanted, reached} of a budget; none without one."""
    rows, budget = [], report.budget
    if budget and budget["quality_drop"]["wanted"] is not None:
        as_words = number if not TASKS[report.task].relative else percent
        words = {key: as_words(value) for key, value in budget["quality_drop"].items()}
        rows.append({"end": "loss of quality on validation, at most", **words})
    if budget and budget["speedup"]["wanted"] is not None:
        speed = budget["speedup"]
        rows.append(
            {"end": "speed over fp32, at least", "wanted": times(speed["wanted"]), "reached": faster(speed["reached"])}
        )
    return rows


def comparison(report: Report) -> list[Row]:
    """Rows of words {figure, original, baseline_int8, final, vs_fp32, vs_optimum_int8}: sizes and quality. What was not
    measured is empty, as the speed of an original is that memory had no room for."""
    files: dict[str, Row] = {name: getattr(report, name) for name in FILES}
    before, int8, after = files.values()
    rows: list[Row] = []
    for figure, key, told_as in (("size of the ONNX file", "file_bytes", size), ("parameters", "parameters", count)):
        told = {name: told_as(row[key]) if row else "" for name, row in files.items()}
        against = {"vs_fp32": before, "vs_optimum_int8": int8}
        vs = {name: smaller(row[key], after[key]) if row else "" for name, row in against.items()}
        rows.append({"figure": figure, **told, **vs})
    for metric in after["quality"]:
        known = {name: row.get("quality", {}) for name, row in files.items()}
        told = {name: number(quality[metric]) if metric in quality else "" for name, quality in known.items()}
        rows.append({"figure": metric, **told, "vs_fp32": loss_words(report, metric, after), "vs_optimum_int8": ""})
    return rows


def headline(report: Report) -> list[Row]:
    """The points that one reads first: the first load, of a decoder in both phases."""
    first, *others = report.final["latency"]
    return [first, *(p for p in others if all(p[key] == first[key] for key in ("batch", "tokens", "threads")))]


def latencies(report: Report) -> list[Row]:
    """Rows as those of `comparison`: the median time at each point of the grid."""
    files: dict[str, Row] = {name: getattr(report, name) for name in FILES}
    rows = []
    for at, point in enumerate(report.final["latency"]):
        told = {
            name: milliseconds(row["latency"][at]["p50"]) if "latency" in row else "" for name, row in files.items()
        }
        speed = {other: faster(point.get("speedup", {}).get(other)) for other in ("vs_fp32", "vs_optimum_int8")}
        rows.append({"figure": f"median time, {point_name(point)}", **told, **speed})
    return rows

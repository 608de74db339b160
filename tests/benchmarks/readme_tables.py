"""Writes the tables of the READMEs, here and at the top, from results/*.json.

python tests/benchmarks/readme_tables.py

A table stands between `<!-- KIND: NAME -->` and `<!-- end -->`; NAME is a file in results/, KIND one of `TABLES`.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
READMES = (HERE.parents[1] / "README.md", HERE / "README.md")


def main() -> None:
    for readme in READMES:
        readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    def table(match: re.Match[str]) -> str:
        found = json.loads((HERE / "results" / f"{match['name']}.json").read_text(encoding="utf-8"))
        return f"{match['begin']}\n{TABLES[match['kind']](found)}\n{match['end']}"

    pattern = r"(?P<begin><!-- (?P<kind>[\w-]+): (?P<name>[\w-]+) -->)\n.*?(?P<end><!-- end -->)"
    return re.sub(pattern, table, text, flags=re.DOTALL)


def of_recipe(report: dict[str, Any]) -> str:
    """One row per file: size, quality, and the speed at each point of the grid."""
    metrics = list(report["final"]["quality"])
    points = report["final"]["latency"]
    where = [f"{p['phase']}, {p['tokens']} tokens, {threads(p['threads'])}" for p in points]
    rows = []
    names = (("original, fp32", "original"), ("Optimum's int8", "baseline_int8"), ("**optimum-slim**", "final"))
    for shown, key in names:
        row = report[key]
        quality = [f"{row['quality'][metric]:.4g}" if metric in row["quality"] else "" for metric in metrics]
        times = [f"{point['p50']:.2f}" for point in row["latency"]]
        if key == "final":
            times = [f"{time} ({p['speedup']['vs_fp32']['median']:.1f}x)" for time, p in zip(times, points)]
        rows.append([shown, f"{row['file_bytes'] / 1e6:.1f}", *quality, *times])
    return markdown(["", "MB", *metrics, *(f"p50 ms ({place})" for place in where)], rows)


def of_operators(found: dict[str, Any]) -> str:
    """Operators that take at least 1 % before or after, and all others in one row."""
    before, after = found["microseconds"]["before"], found["microseconds"]["after"]
    totals = sum(before.values()), sum(after.values())
    names = [n for n in {**after, **before} if max(before.get(n, 0) / totals[0], after.get(n, 0) / totals[1]) > 0.01]
    names.sort(key=lambda name: -before.get(name, 0))
    rows = [(name, before.get(name, 0.0), after.get(name, 0.0)) for name in names]
    rows.append(("others", *(total - sum(row[i] for row in rows) for i, total in enumerate(totals, 1))))
    rows.append(("**all**", *totals))
    return markdown(
        ["operator", "before, µs", "after, µs"], [[name, f"{old:,.0f}", f"{new:,.0f}"] for name, old, new in rows]
    )


def of_kernels(found: dict[str, Any]) -> str:
    """How many times faster than ONNX Runtime's int8, geometric means over the shapes."""
    rows = found["rows"]
    loads = list(dict.fromkeys((row["threads"], row["tokens"]) for row in rows))

    def cell(case: tuple[Any, ...], load: tuple[int, int]) -> str:
        ratio = over_shapes(rows, case, load, "ratio_vs_int8")
        return "" if ratio is None else f"{ratio:.2f}"

    return markdown(
        ["weights", *(f"{rows_told(tokens)}, {threads(count)}" for count, tokens in loads)],
        [[weights_told(*case), *(cell(case, load) for load in loads)] for case in dict.fromkeys(map(case_of, rows))],
    )


def of_peaks(found: dict[str, Any]) -> str:
    """Shares of what a core can do, and how much faster two threads are than one, geometric means over the shapes."""
    rows = found["rows"]
    largest = [row for row in rows if row["k"] * row["n"] >= 768 * 3072]

    def told(case: tuple[Any, ...]) -> list[str]:
        shares = over_shapes(rows, case, (1, 128), "share_of_gop_s"), over_shapes(rows, case, (1, 1), "share_of_gb_s")
        gains = (over_shapes(largest, case, (2, tokens), "ratio_vs_fewest_threads") for tokens in (128, 384))
        percent = (f"{share * 100:.0f} %" for share in shares)
        return [weights_told(*case), *percent, *(f"{gain:.2f}x" for gain in gains)]

    head = ["weights", "products, 128 rows", "reading, 1 row", "two threads, 128 rows", "two threads, 384 rows"]
    return markdown(head, [told(case) for case in dict.fromkeys(map(case_of, rows))])


def of_encoders(found: dict[str, Any]) -> str:
    points = list(dict.fromkeys((row["model"], row["threads"]) for row in found["rows"]))
    names = list(dict.fromkeys(row["what"] for row in found["rows"]))

    def cell(name: str, point: tuple[str, int]) -> str:
        row = next((r for r in found["rows"] if r["what"] == name and (r["model"], r["threads"]) == point), None)
        return f"{row['ms']:.1f} ms, {row['ratio_vs_int8']:.2f}x" if row else ""

    head = ["", *(f"{model}, {threads(count)}" for model, count in points)]
    return markdown(head, [[name, *(cell(name, point) for point in points)] for name in names])


def of_quantization(found: dict[str, Any]) -> str:
    """One row per case: accuracy, and how much higher it is with quantize.aware, over the same texts."""
    cases = list(dict.fromkeys(row["case"] for row in found["rows"]))
    paired = {row["case"]: row for row in found["paired"]}
    body = []
    for case in cases:
        rates = [row["correct"].count("1") / len(row["correct"]) for row in found["rows"] if row["case"] == case]
        more = [100 * paired[case][key] for key in ("mean", "low", "high")] if case in paired else []
        told = "{:+.1f} ({:+.1f} to {:+.1f})".format(*more) if more else ""
        body.append([case, f"{statistics.mean(rates):.4f}", " / ".join(f"{rate:.4f}" for rate in rates), told])
    return markdown(["linears", "accuracy", "by seed", "points more with `static aware` (95 %)"], body)


def of_frontier(rows: dict[str, Any]) -> str:
    """One row per recipe: points of accuracy lost, and the speed on each kind of CPU, one thread."""
    cpus = list(dict.fromkeys(cpu for row in rows.values() for cpu in row.get("latency", {})))

    def told(name: str, row: dict[str, Any]) -> list[str]:
        runs = list(row["runs"].values())
        lost = row["points_lost"]
        times = [row["latency"][cpu][0] if cpu in row.get("latency", {}) else None for cpu in cpus]
        return [
            name,
            f"{runs[0]['bytes'] / 1e6:.1f}",
            f"{statistics.mean(run['accuracy'] for run in runs):.4f}",
            f"{lost['mean']:.1f} ({lost['low']:.1f} to {lost['high']:.1f})",
            str(len(runs)),
            *(f"{time['p50']:.1f} ms, {time['speedup']['median']:.1f}x" if time else "" for time in times),
        ]

    names = [name for name, row in rows.items() if name != "original" and row["runs"]]
    head = ["recipe", "MB", "accuracy", "points lost (95 %)", "seeds", *(f"one thread, {cpu}" for cpu in cpus)]
    return markdown(head, [told(name, rows[name]) for name in names])


def of_evolve(rows: dict[str, Any]) -> str:
    """One row per way of placing zeros: how well the next token is foretold, and how that compares with a dense model
    of the same seeds."""
    body = []
    for name, row in rows.items():
        runs = list(row["runs"].values())
        lost, moved = row["points_lost"], [run["moved"] for run in runs if "moved" in run]
        body.append(
            [
                name,
                f"{statistics.mean(run['accuracy'] for run in runs):.4f}",
                " / ".join(f"{run['accuracy']:.4f}" for run in runs),
                "" if name == "dense" else f"{lost['mean']:.2f} ({lost['low']:.2f} to {lost['high']:.2f})",
                f"{statistics.geometric_mean(run['perplexity'] for run in runs):.1f}",
                f"{statistics.mean(moved):.0%}" if moved else "",
            ]
        )
    head = [
        "zeros",
        "accuracy",
        "by seed",
        "points lost against dense (95 %)",
        "perplexity",
        "weights elsewhere at the end",
    ]
    return markdown(head, body)


def of_decoders(found: dict[str, Any]) -> str:
    """One row per recipe or peer: perplexities and what they are more than the first row's, bytes, milliseconds of a
    prompt of 128 tokens and of a token behind them."""
    rows, times = found["rows"], found.get("times", {})
    original = next(iter(rows.values()))
    metrics = [name for name in original["quality"] if name.startswith("perplexity")]
    body = []
    for name, row in rows.items():
        at = milliseconds(times.get(name, {}).get("points", []))
        told = [name, f"{row['bytes'] / 1e6:.1f}"]
        for metric in metrics:
            value, before = row["quality"][metric], original["quality"][metric]
            told.append(f"{value:.2f}" if row is original else f"{value:.2f} ({value / before - 1:+.1%})")
        divergences = [value for key, value in row["quality"].items() if key.startswith("kl_divergence")]
        told.append(" / ".join(f"{value:.3f}" for value in divergences))
        told += [at.get((phase, 128), "") for phase in ("prefill", "decode")]
        body.append(told)
    sets = [name.replace("/", ", ") for name in metrics]
    return markdown(["", "MB", *sets, "KL divergence", "prefill, ms", "decode, ms"], body)


def of_contexts(found: dict[str, Any]) -> str:
    """Milliseconds by length of context, a column for each, and the memory of a process that serves the file."""
    rows = {name: row for name, row in found["times"].items() if name != "environment"}
    times = {name: milliseconds(row["points"]) for name, row in rows.items()}
    known = {column for at in times.values() for column in at}
    columns = sorted(known, key=lambda column: (column[0] == "decode", column[1]))
    memory = {name: f"{row['rss_bytes'] / 1e6:.0f}" if "rss_bytes" in row else "" for name, row in rows.items()}
    body = [[name, *(at.get(column, "") for column in columns), memory[name]] for name, at in times.items()]
    return markdown(["", *(f"{phase} {tokens}" for phase, tokens in columns), "RSS, MB"], body)


def milliseconds(points: list[dict[str, Any]]) -> dict[tuple[str, int], str]:
    """By phase and length of context."""
    return {(point["phase"], point["tokens"]): f"{point['ms']:.1f}" for point in points}


def of_sparsity(rows: list[dict[str, Any]]) -> str:
    """Perplexities by pattern and share of zeros, a column for each technique."""
    techniques = list(dict.fromkeys(row["technique"] for row in rows if row["settings"]))
    cases = list(dict.fromkeys((r["settings"]["pattern"], r["settings"]["ratio"]) for r in rows if r["settings"]))

    def told(row: dict[str, Any]) -> str:
        return " / ".join(f"{value:,.1f}" if value < 1e4 else "> 10,000" for value in row["quality"].values())

    def cell(technique: str, case: tuple[str, float]) -> str:
        wanted = {"technique": technique, "pattern": case[0], "ratio": case[1]}
        row = next((r for r in rows if {"technique": r["technique"], **r["settings"]}.items() >= wanted.items()), None)
        return "" if row is None else f"{told(row)} ({row['seconds']:.0f} s, {row['peak_rss_bytes'] / 1e9:.1f} GB)"

    sets = " / ".join(metric.partition("/")[2] for metric in rows[0]["quality"])
    body = [[f"{p}, {share:.0%}", *(cell(t, (p, share)) for t in techniques)] for p, share in cases]
    before = ["none", told(rows[0]), *[""] * (len(techniques) - 1)]
    return markdown([f"zeros ({sets})", *(f"`{name}`" for name in techniques)], [before, *body])


def of_streaming(rows: list[dict[str, Any]]) -> str:
    """One row per model and technique: bytes of the process, and the CPU's seconds, block by block."""
    body = []
    for row in [one for one in rows if "technique" in one]:
        spent = row["cpu_seconds"]
        each = [after - before for before, after in itertools.pairwise(spent)]
        straight = statistics.correlation(range(len(spent)), spent) ** 2
        sizes = (4 * row["parameters"], row["base_rss_bytes"], row["peak_rss_bytes_with_saving"])
        told = [row["model"], str(len(spent)), f"`{row['technique']}`", *(f"{size / 1e6:,.0f}" for size in sizes)]
        body.append([*told, f"{statistics.median(each):.2f}", f"{spent[-1]:.0f}", f"{straight:.4f}"])
    head = ["model", "blocks", "step", "fp32 weights, MB", "at rest, MB", "peak, MB"]
    return markdown([*head, "CPU s a block", "CPU s in all", "straight"], body)


def of_written(rows: list[dict[str, Any]]) -> str:
    """One row per model and file: its bytes, those of the process that wrote it, and the CPU's seconds."""
    body = []
    for row in [one for one in rows if "precision" in one]:
        sizes = (row["bytes"], row["base_rss_bytes"], row["peak_rss_bytes"])
        told = [row["model"], row["precision"], *(f"{size / 1e6:,.0f}" for size in sizes)]
        body.append([*told, f"{row['cpu_seconds_in_all']:.0f}"])
    return markdown(["model", "file", "its MB", "at rest, MB", "peak, MB", "CPU s in all"], body)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def case_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """The kind of weights that a kernel was timed with."""
    return row["pattern"], row["sparsity"], row["group_size"]


def over_shapes(rows: Sequence[dict[str, Any]], case: tuple[Any, ...], load: tuple[int, int], key: str) -> float | None:
    """The geometric mean over the shapes of one kind of weights, with so many threads and rows."""
    wanted = [row for row in rows if (row["threads"], row["tokens"]) == load and case_of(row) == case]
    return statistics.geometric_mean(row[key] for row in wanted) if wanted else None


def weights_told(pattern: str, sparsity: float, group_size: int | None) -> str:
    zeros = f" {sparsity * 100:.0f} %" if sparsity else ""
    return f"{pattern}{zeros}" + (f", groups of {group_size}" if group_size else "")


def rows_told(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


TABLES: dict[str, Callable[[Any], str]] = {
    "figures": of_recipe,
    "operators": of_operators,
    "kernels": of_kernels,
    "peaks": of_peaks,
    "encoders": of_encoders,
    "quantization": of_quantization,
    "frontier": of_frontier,
    "evolve": of_evolve,
    "decoders": of_decoders,
    "contexts": of_contexts,
    "sparsity": of_sparsity,
    "streaming": of_streaming,
    "written": of_written,
}


if __name__ == "__main__":
    main()

"""Run a shipped recipe on a real model and keep its figures.

python tests/benchmarks/recipes.py encoder-fast --model M --data D --set data.evaluation=validation+test --json F
python tests/benchmarks/recipes.py --readme        writes the figures of results/*.json into README.md
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[2] / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--output", help="keep the folder that is made")
    parser.add_argument("--json", type=Path, help="where the figures go; default results/<recipe>.json")
    parser.add_argument("--readme", action="store_true")
    arguments = parser.parse_args()
    if arguments.recipe:
        measure(arguments)
    if arguments.readme:
        write_readme()


def measure(arguments: argparse.Namespace) -> None:
    from optimum_slim import load_recipe, slim
    from optimum_slim.commands.run import summary

    pairs = [pair.partition("=") for pair in arguments.set]
    overrides = {key: value for key, _, value in pairs}
    overrides |= {"model": f'"{arguments.model}"', "data.source": f'"{arguments.data}"'}
    with tempfile.TemporaryDirectory() as folder:
        output = arguments.output or f"{folder}/out"
        report = slim(load_recipe(arguments.recipe, overrides), output, say=print)
    print("\n".join(summary(arguments.recipe, report)))
    target = arguments.json or RESULTS / f"{arguments.recipe}.json"
    target.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")


def write_readme() -> None:
    """Replaces what stands between `<!-- figures: NAME -->` and `<!-- end -->` by a table of results/NAME.json."""
    text = README.read_text(encoding="utf-8")
    for name in re.findall(r"<!-- figures: ([\w-]+) -->", text):
        report = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        pattern = rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, r=report: m[1] + table(r) + m[2], text, flags=re.DOTALL)
    README.write_text(text, encoding="utf-8")


def table(report: dict[str, Any]) -> str:
    """One row per file: size, quality, and the speed at each point of the grid."""
    metrics = list(report["final"]["quality"])
    points = report["final"]["latency"]
    where = [f"{p['phase']}, {p['tokens']} tokens, {threads(p)}" for p in points]
    head = ["", "MB", *metrics, *(f"p50 ms ({place})" for place in where)]
    rows = [head, ["---"] * len(head)]
    names = (("original, fp32", "original"), ("Optimum's int8", "baseline_int8"), ("**optimum-slim**", "final"))
    for shown, key in names:
        row = report[key]
        quality = [f"{row['quality'][metric]:.4g}" if metric in row["quality"] else "" for metric in metrics]
        times = [f"{point['p50']:.2f}" for point in row["latency"]]
        if key == "final":
            times = [f"{time} ({p['speedup']['vs_fp32']['median']:.1f}x)" for time, p in zip(times, points)]
        rows.append([shown, f"{row['file_bytes'] / 1e6:.1f}", *quality, *times])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def threads(point: dict[str, Any]) -> str:
    return "1 thread" if point["threads"] == 1 else f"{point['threads']} threads"


if __name__ == "__main__":
    main()

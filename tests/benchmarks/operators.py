"""Where the time of a sparse encoder goes, by operator: before and after the rest of the block was rewritten.

python tests/benchmarks/operators.py --model FOLDER [--pattern 4x4] [--ratio 0.9] [--json F]
python tests/benchmarks/operators.py --readme        writes results/operators.json into the README.md beside this
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

import optimum_slim
from optimum_slim.deploy.benchmark import feeds
from optimum_slim.deploy.export import export_folder, save_onnx
from optimum_slim.deploy.graph import quantize_embeddings, sum_residuals
from optimum_slim.deploy.lowering import lower
from optimum_slim.deploy.machine import environment, session_options
from optimum_slim.deploy.precision import int8_rows, prepared
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.tasks import task_named
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude

HERE = Path(__file__).parent
RUNS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--pattern", default="4x4")
    parser.add_argument("--ratio", type=float, default=0.9)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "operators.json")
    parser.add_argument("--readme", action="store_true")
    arguments = parser.parse_args()
    if arguments.model:
        found = measure(arguments.model, arguments.pattern, arguments.ratio, arguments.tokens)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(table(found))
    if arguments.readme:
        write_readme()


def measure(source: str, pattern: str, ratio: float, tokens: int) -> dict[str, Any]:
    model = optimum_slim.load_model(source)
    SparsifyMagnitude(ratio=ratio, pattern=pattern).apply(model)
    patterns = sparsity_in(model.config)
    with tempfile.TemporaryDirectory() as scratch:
        folder = export_folder(model, task_named("auto", model.config), Path(scratch))
        graph = onnx.load(folder / "model.onnx")
        sum_residuals(graph)
        lower(graph, patterns)
        quantize_embeddings(graph, {})
        save_onnx(graph, folder / "before.onnx")
        int8_rows(prepared(folder / "model.onnx"), folder / "after.onnx", None, patterns)
        profiles = {name: profile(folder / f"{name}.onnx", tokens) for name in ("before", "after")}
    told = {"model": Path(source).name, "pattern": pattern, "ratio": ratio, "tokens": tokens}
    return told | {"environment": environment(), "microseconds": profiles}


def profile(path: Path, tokens: int) -> dict[str, float]:
    """Microseconds of one text by operator, one thread, by ONNX Runtime's own profiler."""
    options = session_options(1)
    options.enable_profiling = True
    options.profile_file_prefix = str(path)
    session = onnxruntime.InferenceSession(str(path), options)
    inputs = feeds(session, "prefill", 1, tokens)
    for _ in range(RUNS):
        session.run(None, inputs)
    spent: dict[str, float] = defaultdict(float)
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / RUNS
    return {name: round(time, 1) for name, time in sorted(spent.items(), key=lambda item: -item[1])}


def table(found: dict[str, Any]) -> str:
    """Operators that take at least 1 % before or after, and all others in one row."""
    before, after = found["microseconds"]["before"], found["microseconds"]["after"]
    totals = sum(before.values()), sum(after.values())
    names = [n for n in {**after, **before} if max(before.get(n, 0) / totals[0], after.get(n, 0) / totals[1]) > 0.01]
    names.sort(key=lambda name: -before.get(name, 0))
    rows = [(name, before.get(name, 0.0), after.get(name, 0.0)) for name in names]
    rows.append(("others", *(total - sum(row[i] for row in rows) for i, total in enumerate(totals, 1))))
    rows.append(("**all**", *totals))
    lines = [f"| {name} | {old:,.0f} | {new:,.0f} |" for name, old, new in rows]
    return "\n".join(["| operator | before, µs | after, µs |", "| --- | --- | --- |", *lines])


def write_readme() -> None:
    found = json.loads((HERE / "results" / "operators.json").read_text(encoding="utf-8"))
    readme = HERE / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition("<!-- operators -->\n")
    tail = rest.partition("<!-- end -->")[2]
    readme.write_text(f"{head}<!-- operators -->\n{table(found)}\n<!-- end -->{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()

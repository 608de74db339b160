"""Where the time of a sparse encoder goes, by operator: before and after the rest of the block was rewritten.

python tests/benchmarks/operators.py --model FOLDER [--pattern 4x4] [--ratio 0.9] [--json F]
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
from readme_tables import of_operators

import optimum_slim
from optimum_slim.deploy.benchmark import feeds
from optimum_slim.deploy.export import export_folder
from optimum_slim.deploy.graph import quantize_embeddings, sum_residuals
from optimum_slim.deploy.lowering import lower
from optimum_slim.deploy.machine import environment, session_options
from optimum_slim.deploy.precision import int8_rows, prepared
from optimum_slim.deploy.stored import save_onnx
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.tasks import task_named
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude

HERE = Path(__file__).parent
RUNS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pattern", default="4x4")
    parser.add_argument("--ratio", type=float, default=0.9)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "operators.json")
    arguments = parser.parse_args()
    found = measure(arguments.model, arguments.pattern, arguments.ratio, arguments.tokens)
    arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(of_operators(found))


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


if __name__ == "__main__":
    main()

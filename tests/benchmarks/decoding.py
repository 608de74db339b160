"""What a decoder gains from fused attention and the last token's logits alone: nodes, prompts, tokens after a context.

python tests/benchmarks/decoding.py --model FOLDER [--precisions fp32 int8-weights] [--contexts 16 128 1024]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime

import optimum_slim
from optimum_slim.deploy.attention import fold_scales
from optimum_slim.deploy.benchmark import feeds, with_cache
from optimum_slim.deploy.export import export_folder
from optimum_slim.deploy.glue import freeze_shapes
from optimum_slim.deploy.graph import sum_residuals
from optimum_slim.deploy.machine import session_options
from optimum_slim.deploy.precision import PRECISIONS, prepared
from optimum_slim.tasks import task_named

PROMPT = 128  # tokens
ROUNDS = 15
RUNS = 3  # in a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8-dynamic", "int8-rows", "int8-weights"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[16, 128, 1024])
    arguments = parser.parse_args()
    loads = [("prefill", PROMPT), *(("decode", tokens) for tokens in arguments.contexts)]
    print("| precision | nodes |", " | ".join(f"{phase}, {tokens}, ms" for phase, tokens in loads), "|")
    print("| --- " * (2 + len(loads)) + "|")
    model = optimum_slim.load_model(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        source = export_folder(model, task_named("auto", model.config), Path(scratch)) / "model.onnx"
        for precision in arguments.precisions:
            files = [source.with_name(f"{name}.onnx") for name in ("before", "after")]
            PRECISIONS[precision](before(source), files[0])
            PRECISIONS[precision](prepared(source, "last"), files[1])
            cells = [told([executed(file) for file in files]), *(told(least(files, *load)) for load in loads)]
            print(f"| {precision} |", " | ".join(cells), "|", flush=True)


def before(source: Path) -> onnx.ModelProto:
    """The graph as it was prepared without these two."""
    graph = onnx.load(source)
    sum_residuals(graph)
    freeze_shapes(graph)
    fold_scales(graph)
    return graph


def executed(file: Path) -> int:
    """How many nodes ONNX Runtime runs for each token."""
    options = session_options(1)
    options.optimized_model_filepath = str(file.with_name("optimized.onnx"))
    onnxruntime.InferenceSession(str(file), options)
    return len(onnx.load(file.with_name("optimized.onnx"), load_external_data=False).graph.node)


def least(files: Sequence[Path], phase: str, tokens: int) -> list[float]:
    """Milliseconds of one call of each file, in turns: the least time on the CPU, which others on it disturb least."""
    sessions = [onnxruntime.InferenceSession(str(file), session_options(1)) for file in files]
    inputs = [feeds(session, phase, 1, tokens) for session in sessions]
    if phase == "decode":
        inputs = [with_cache(session, one, 1, tokens) for session, one in zip(sessions, inputs, strict=True)]
    times: list[list[float]] = [[] for _ in files]
    for _ in range(ROUNDS):
        for session, one, found in zip(sessions, inputs, times, strict=True):
            for _ in range(RUNS):
                start = time.thread_time()
                session.run(None, one)
                found.append((time.thread_time() - start) * 1000)
    return [min(found) for found in times]


def told(pair: Sequence[float]) -> str:
    old, new = (f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" for value in pair)
    return f"{old} → {new} ({pair[0] / pair[1]:.2f}x)"


if __name__ == "__main__":
    main()

"""Fills the latency table of this CPU, and decides by it which sparse weights run sparse."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from huggingface_hub.constants import HF_HOME
from onnx import helper, numpy_helper
from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim.deploy.machine import environment, session_options
from optimum_slim.kernels.function import DOMAIN, slim_functions, slim_node
from optimum_slim.kernels.library import isa
from optimum_slim.kernels.packing import pack
from optimum_slim.kernels.pattern import pattern_named
from optimum_slim.model.latency import LatencyTable, Point
from optimum_slim.model.shape import in_features, out_features
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.progress import progress

ROUNDS = 7
SECONDS = 0.004  # of repeated runs in a round


def fastest_patterns(model: PreTrainedModel, rows: int, threads: int) -> dict[str, str]:
    """How each weight that the config lists as sparse runs fastest: in its pattern, or "dense".

    Args:
        rows: of the activations: texts times tokens, or texts for a decoder.
        threads: of ONNX Runtime.
    """
    modules, points = dict(model.named_modules()), {}
    for name, pattern in sparsity_in(model.config).items():
        linear = modules[name.removesuffix(".weight")]
        sparsity = round(zeros_in(linear.weight), 2)
        points[name] = Point("SlimLinear", in_features(linear), out_features(linear), rows, threads, pattern, sparsity)
    dense = {name: Point("SlimLinear", p.k, p.n, rows, threads) for name, p in points.items()}
    table = measured([*points.values(), *dense.values()])
    times = table.milliseconds
    return {name: points[name].pattern if times[points[name]] <= times[dense[name]] else "dense" for name in points}


def zeros_in(weight: Tensor) -> float:
    """The share of a weight that is zero."""
    return 1 - int(weight.count_nonzero()) / weight.numel()


def measured(points: Iterable[Point]) -> LatencyTable:
    """The table of this CPU, with these points in it: read from the cache, else measured in turns and kept."""
    path = table_path()
    table = LatencyTable.read(path)
    missing = [point for point in dict.fromkeys(points) if point not in table.milliseconds]
    if missing:
        table.milliseconds |= _measure(missing)
        table.save(path)
    return table


def table_path() -> Path:
    """Where the table of this CPU, these versions and these kernels is kept, under HF_HOME."""
    machine = environment() | {"isa": isa()}
    key = json.dumps([machine[name] for name in ("cpu", "cpu_flags", "versions", "isa")])
    return Path(HF_HOME) / "optimum_slim" / f"latency-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _measure(points: list[Point]) -> dict[Point, float]:
    """Milliseconds, medians over rounds in which all points have their turn."""
    sessions = [
        onnxruntime.InferenceSession(one_linear(p).SerializeToString(), session_options(p.threads)) for p in points
    ]
    x = [np.random.default_rng(0).standard_normal((p.rows, p.k)).astype(np.float32) for p in points]
    times: list[list[float]] = [[] for _ in points]
    for _ in progress(range(ROUNDS), "timing layers"):
        for at, session in enumerate(sessions):
            session.run(None, {"x": x[at]})
            count, begun = 0, time.perf_counter()
            while time.perf_counter() - begun < SECONDS:
                session.run(None, {"x": x[at]})
                count += 1
            times[at].append((time.perf_counter() - begun) / count * 1000)
    return {point: statistics.median(found) for point, found in zip(points, times, strict=True)}


def one_linear(point: Point) -> onnx.ModelProto:
    """A model of one linear with random weights, zeros where the pattern drops them at random."""
    draw = np.random.default_rng(0)
    weight = draw.integers(1, 128, (point.n, point.k)) * draw.choice([-1, 1], (point.n, point.k))
    weight = (weight * _kept(point, draw)).astype(np.int8)
    scale, bias = np.full((point.n, 1), 1e-3, np.float32), np.zeros(point.n, np.float32)
    inputs: dict[str, np.ndarray]
    if point.op == "SlimLinear":
        mask, values = pack(weight, point.pattern)
        inputs = {"mask": mask, "values": values, "scale": scale, "bias": bias}
        nodes = [slim_node("SlimLinear", ["x", *inputs], "y", point.k, point.n, point.pattern)]
    elif point.op == "int8":
        inputs = {"w": np.ascontiguousarray(weight.T), "s": scale[:, 0], "b": bias}
        nodes = [helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s", "", "b"], ["y"], domain="com.microsoft")]
    else:
        inputs = {"w": np.ascontiguousarray(weight.T.astype(np.float32)), "b": bias}
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", point.k])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", point.n])],
        [numpy_helper.from_array(value, name) for name, value in inputs.items()],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
    functions = slim_functions({nodes[0].op_type}) if point.op == "SlimLinear" else []
    return helper.make_model(graph, opset_imports=domains, functions=functions, ir_version=9)


def _kept(point: Point, draw: np.random.Generator) -> np.ndarray:
    """Which weights stay, in whole blocks."""
    if point.pattern == "2:4":
        order = draw.random((point.n, -(-point.k // 4), 4)).argsort(axis=2)
        return (order < 2).reshape(point.n, -1)[:, : point.k]
    block = pattern_named(point.pattern)
    grid = (-(-point.n // block.outputs), -(-point.k // block.inputs))
    blocks = draw.random(grid) >= point.sparsity
    return blocks.repeat(block.outputs, 0).repeat(block.inputs, 1)[: point.n, : point.k]

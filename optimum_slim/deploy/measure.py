"""Fills the latency table of this CPU, and decides by it which sparse weights run sparse."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from huggingface_hub.constants import HF_HOME
from onnx import helper, numpy_helper
from transformers import PreTrainedModel

from optimum_slim.deploy.benchmark import in_turns
from optimum_slim.deploy.machine import environment, session_options
from optimum_slim.kernels.library import isa
from optimum_slim.kernels.model import layer_model
from optimum_slim.kernels.pattern import pattern_named
from optimum_slim.model.latency import LatencyTable, Point
from optimum_slim.model.shape import in_features, out_features
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.model.streamed import in_parts

ROUNDS = 7
SECONDS = 0.004  # of repeated runs in a round


def fastest_patterns(model: PreTrainedModel, rows: int, threads: int) -> dict[str, str]:
    """How each weight that the config lists as sparse runs fastest: in its pattern, or "dense".

    Args:
        rows: of the activations: texts times tokens, or texts for a decoder.
        threads: of ONNX Runtime.
    """
    modules, points, listed = dict(model.named_modules()), {}, sparsity_in(model.config)
    for _ in in_parts(model):
        for name in [name for name in listed if not model.get_parameter(name).is_meta]:
            linear, pattern = modules[name.removesuffix(".weight")], listed[name]
            sparsity = round(1 - int(linear.weight.count_nonzero()) / linear.weight.numel(), 2)
            sizes = in_features(linear), out_features(linear)
            points[name] = Point("SlimLinear", *sizes, rows, threads, pattern, sparsity)
    dense = {name: Point("SlimLinear", p.k, p.n, rows, threads) for name, p in points.items()}
    table = measured([*points.values(), *dense.values()])
    times = table.milliseconds
    return {name: points[name].pattern if times[points[name]] <= times[dense[name]] else "dense" for name in points}


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
    runs: dict[Point, Callable[[], Any]] = {}
    for point in points:
        session = onnxruntime.InferenceSession(one_linear(point).SerializeToString(), session_options(point.threads))
        x = np.random.default_rng(0).standard_normal((point.rows, point.k)).astype(np.float32)
        runs[point] = partial(session.run, None, {"x": x})
    times = in_turns(runs, ROUNDS, SECONDS, "timing layers")
    return {point: statistics.median(found) for point, found in times.items()}


def one_linear(point: Point) -> onnx.ModelProto:
    """A model of one linear with random weights, zeros where the pattern drops them at random."""
    weight = random_weight(np.random.default_rng(0), point.k, point.n, point.pattern, point.sparsity)
    scale, bias = np.full((point.n, 1), 1e-3, np.float32), np.zeros(point.n, np.float32)
    if point.op == "SlimLinear":
        return layer_model(weight, scale, bias, point.pattern)
    inputs: dict[str, np.ndarray]
    if point.op == "int8":
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
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9)


def random_weight(draw: np.random.Generator, k: int, n: int, pattern: str, sparsity: float) -> np.ndarray:
    """int8 [n, k] with the bell shape of quantized layers, the largest of each output 127; never 0 but where blocks of
    the pattern are dropped at random; 2:4 drops two of every four."""
    if pattern == "2:4":
        kept = (draw.random((n, -(-k // 4), 4)).argsort(axis=2).argsort(axis=2) < 2).reshape(n, -1)
    else:
        block = pattern_named(pattern)
        blocks = draw.random((-(-n // block.outputs), -(-k // block.inputs))) >= sparsity
        kept = blocks.repeat(block.outputs, 0).repeat(block.inputs, 1)
    weight = draw.standard_normal((n, k)) * kept[:n, :k]
    magnitude = np.abs(weight)
    scaled = np.rint(magnitude * (127 / magnitude.max(axis=1, keepdims=True, initial=1e-30)))
    return (np.sign(weight) * np.maximum(scaled, 1)).astype(np.int8)

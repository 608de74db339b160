"""Random layers, models of one SlimLinear node or of several in one, sessions, and what the node must compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import helper
from onnx.onnx_pb import ModelProto, TensorProto

from optimum_slim.kernels.function import MEETINGS, OTHER, PLAIN, slim_functions
from optimum_slim.kernels.joined import joined_function, joined_node
from optimum_slim.kernels.library import register
from optimum_slim.kernels.model import layer_model
from optimum_slim.kernels.pattern import PATTERNS


@dataclass
class Layer:
    weight: np.ndarray  # int8 [N, K]
    scale: np.ndarray
    bias: np.ndarray
    pattern: str
    group_size: int | None = None

    @property
    def n(self) -> int:
        return self.weight.shape[0]

    @property
    def k(self) -> int:
        return self.weight.shape[1]


def random_layer(n: int, k: int, pattern: str, density: float = 0.4, group_size: int | None = None, seed=0) -> Layer:
    """Blocks are kept at random; under `dense` all, under 2:4 at most two of four."""
    rng = np.random.default_rng((seed, n, k))
    weight = rng.integers(-128, 128, (n, k)).astype(np.int8)
    groups = 1 if group_size is None else k // group_size
    scale = (rng.random((n, groups), np.float32) + np.float32(0.5)) * np.float32(1e-3)
    kept = np.ones((n, k), bool)
    if pattern == "2:4":
        ranks = rng.random((n, -(-k // 4), 4)).argsort(axis=2).argsort(axis=2)
        kept = (ranks < 2).reshape(n, -1)[:, :k] & (rng.random((n, k)) < 2 * density)
    elif pattern != "dense":
        shape = PATTERNS[pattern]
        blocks = rng.random((-(-n // shape.outputs), -(-k // shape.inputs))) < density
        kept = np.repeat(np.repeat(blocks, shape.outputs, 0), shape.inputs, 1)[:n, :k]
    return Layer(weight * kept, scale, rng.standard_normal(n, np.float32), pattern, group_size)


def random_rows(*shape: int, seed=1) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32)


def slim_model(layer: Layer, ending: str = "", dims: list | None = None, functions: bool = True) -> ModelProto:
    """A model of one node; dims are those of x, by default rows x K."""
    leading = dims[:-1] if dims else ["rows"]
    return layer_model(
        layer.weight, layer.scale, layer.bias, layer.pattern, ending, layer.group_size, leading, functions
    )


def joined_model(models: Sequence[ModelProto], activation: str = "", functions: bool = True) -> ModelProto:
    """Of models of one linear each, without functions: their initializers get the linear's number."""
    models = [ModelProto.FromString(one.SerializeToString()) for one in models]
    for i, one in enumerate(models):
        one.graph.node[0].name = f"linear {i}"
        one.graph.node[0].input[1:] = [f"{name}{i}" for name in one.graph.node[0].input[1:]]
        for tensor in one.graph.initializer:
            tensor.name = f"{tensor.name}{i}"
    linears = [one.graph.node[0] for one in models]
    node = joined_node(linears, "y", activation)
    (n,) = (one.i for one in node.attribute if one.name == "N")
    (k,) = (one.i for one in node.attribute if one.name == "K")
    graph = helper.make_graph(
        [node],
        "linears",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", n])],
        [tensor for one in models for tensor in one.graph.initializer],
    )
    opset = models[0].opset_import[0].version
    plain = [linears[0].op_type] if linears[0].op_type in PLAIN else []
    bodies = [*slim_functions(plain, opset), joined_function(node.op_type, opset)] if functions else []
    imports = [helper.make_opsetid(one.domain, one.version) for one in models[0].opset_import]
    return helper.make_model(graph, opset_imports=imports, functions=bodies, ir_version=models[0].ir_version)


def session(
    model: ModelProto, registered: bool = True, threads: int = 1, optimized: str = ""
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimized:
        options.optimized_model_filepath = optimized
    if registered:
        assert register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(layer: Layer, x: np.ndarray, ending: str = "", registered: bool = True, threads: int = 1) -> np.ndarray:
    dims = [f"d{i}" for i in range(x.ndim - 1)] + [layer.k]
    model = slim_model(layer, ending, dims, functions=not registered)
    return session(model, registered, threads).run(None, fed(layer, x, ending))[0]


def fed(layer: Layer, x: np.ndarray, ending: str) -> dict[str, np.ndarray]:
    """The inputs of a model of this layer: x, and what its outputs meet."""
    return {"x": x} | ({OTHER: random_rows(*x.shape[:-1], layer.n, seed=2)} if ending in MEETINGS else {})


def expected(layer: Layer, x: np.ndarray, meeting: str = "") -> np.ndarray:
    """FORMAT.md's numbers in numpy: sums in int64, everything else rounded to float32 in its order; a meeting meets
    what is `fed`."""
    full = np.float32(127)
    groups = layer.scale.shape[1]
    size = layer.k // groups
    rows = x.reshape(-1, layer.k)
    y = np.zeros((len(rows), layer.n), np.float32)
    for group in range(groups):
        of_group = slice(group * size, (group + 1) * size)
        largest = np.maximum(np.abs(rows[:, of_group]).max(axis=1, keepdims=True), np.float32(1e-30))
        quantized = np.round(rows[:, of_group] * (full / largest)).astype(np.int64)
        sums = quantized @ layer.weight[:, of_group].T.astype(np.int64)
        with np.errstate(over="ignore"):  # to infinity, like the kernel
            y += (sums.astype(np.float32) * (largest / full)) * layer.scale[:, group]
    y = (y + layer.bias).reshape(*x.shape[:-1], layer.n)
    other = fed(layer, x, meeting).get(OTHER)
    return {"": lambda: y, "Add": lambda: y + other, "Mul": lambda: y * other}[meeting]()

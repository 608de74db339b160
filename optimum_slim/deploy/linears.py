"""The linears of an ONNX graph: a product with a stored weight, and the bias and activation that follow it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from scipy.special import erf

from optimum_slim.deploy.wiring import Wiring, attribute_of

SAMPLES = np.linspace(-8, 8, 257, dtype=np.float32)
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "GeluTanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "Silu": lambda x: x / (1 + np.exp(-x)),
}
_POINTWISE = {"Add", "Sub", "Mul", "Div", "Pow", "Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "Constant"}


@dataclass(frozen=True)
class Linear:
    """`output = activation(x W^T + bias)`, and the nodes that compute it."""

    name: str  # of the product's node, which keeps the path of the torch module
    x: str
    weight: str  # the initializer
    transposed: bool  # it is stored as [inputs, outputs]
    bias: str | None  # the initializer
    activation: str  # of `ACTIVATIONS`, or ""
    output: str
    nodes: tuple[onnx.NodeProto, ...]


def linears_in(graph: onnx.ModelProto) -> Iterator[Linear]:
    """Every MatMul and Gemm with a stored float weight [inputs, outputs], in the order of the graph."""
    wiring = Wiring(graph)
    for node in graph.graph.node:
        if node.op_type == "MatMul" and _float_rank(wiring, node.input[1]) == 2:
            bias, nodes = _added_bias(wiring, node)
            yield _linear(wiring, node, True, bias, nodes)
        elif node.op_type == "Gemm" and _float_rank(wiring, node.input[1]) == 2 and _is_plain(node):
            transposed = not attribute_of(node, "transB", 0)
            bias = node.input[2] if len(node.input) > 2 else None
            if bias is None or _float_rank(wiring, bias) == 1:
                yield _linear(wiring, node, transposed, bias, (node,))


def _linear(
    wiring: Wiring, product: onnx.NodeProto, transposed: bool, bias: str | None, nodes: tuple[onnx.NodeProto, ...]
) -> Linear:
    activation, more = activation_of(wiring, nodes[-1].output[0])
    nodes = (*nodes, *more)
    x, weight = product.input[:2]
    return Linear(product.name, x, weight, transposed, bias, activation, nodes[-1].output[0], nodes)


def _added_bias(wiring: Wiring, product: onnx.NodeProto) -> tuple[str | None, tuple[onnx.NodeProto, ...]]:
    """The bias that the only reader of a product adds to it, and the nodes up to there."""
    add = wiring.only_reader(product.output[0], "Add")
    if add is not None:
        other = next((name for name in add.input if name != product.output[0]), "")
        if _float_rank(wiring, other) == 1 and wiring.stored[other].dims[0] == wiring.stored[product.input[1]].dims[1]:
            return other, (product, add)
    return None, (product,)


def activation_of(wiring: Wiring, value: str) -> tuple[str, tuple[onnx.NodeProto, ...]]:
    """The activation that all readers of a value compute together, recognized by what comes out for `SAMPLES`; the
    exporter writes one in many ways. Its last node comes last."""
    made, nodes = {value}, list[onnx.NodeProto]()
    frontier = list(wiring.readers[value])
    while frontier:
        node = frontier.pop(0)
        known = all(name in made or _is_scalar(wiring.tensor(name)) for name in node.input)
        if node in nodes or node.op_type not in _POINTWISE or not known or made & wiring.outputs:
            continue
        nodes.append(node)
        made.add(node.output[0])
        frontier += wiring.readers[node.output[0]]
        leaves = [name for name in made if any(reader not in nodes for reader in wiring.readers[name])]
        if leaves in ([node.output[0]], []):
            name = _recognized(wiring, value, nodes)
            if name:
                return name, tuple(nodes)
    return "", ()


def _recognized(wiring: Wiring, value: str, nodes: list[onnx.NodeProto]) -> str:
    constants = {name: wiring.constant(name) for node in nodes for name in node.input}
    body = helper.make_graph(
        nodes,
        "activation",
        [helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, [len(SAMPLES)])],
        [helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, [len(SAMPLES)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if array is not None],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)])
    (found,) = ReferenceEvaluator(model).run(None, {value: SAMPLES})
    return next((n for n, wanted in ACTIVATIONS.items() if np.allclose(found, wanted(SAMPLES), atol=1e-5)), "")


def _is_plain(gemm: onnx.NodeProto) -> bool:
    usual = attribute_of(gemm, "alpha", 1.0) == 1.0 and attribute_of(gemm, "beta", 1.0) == 1.0
    return usual and not attribute_of(gemm, "transA", 0)


def _float_rank(wiring: Wiring, name: str) -> int | None:
    stored = wiring.stored.get(name)
    return len(stored.dims) if stored is not None and stored.data_type == onnx.TensorProto.FLOAT else None


def _is_scalar(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and int(np.prod(tensor.dims)) == 1

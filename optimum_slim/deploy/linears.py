"""The linears of an ONNX graph: a product with a stored weight, and the bias and activation that follow it alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from scipy.special import erf

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
    look = _Look(graph)
    for node in graph.graph.node:
        if node.op_type == "MatMul" and _rank(look.stored, node.input[1]) == 2:
            bias, nodes = look.added_bias(node)
            yield look.linear(node, node.input[0], node.input[1], True, bias, nodes)
        elif node.op_type == "Gemm" and _rank(look.stored, node.input[1]) == 2 and _is_plain(node):
            transposed = not _attribute(node, "transB", 0)
            bias = node.input[2] if len(node.input) > 2 else None
            if bias is None or _rank(look.stored, bias) == 1:
                yield look.linear(node, node.input[0], node.input[1], transposed, bias, (node,))


class _Look:
    """Who makes and who reads each value of a graph."""

    def __init__(self, graph: onnx.ModelProto):
        self.stored = {t.name: t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.constants = {t.name: t for t in graph.graph.initializer}
        self.outputs = {value.name for value in graph.graph.output}
        for node in graph.graph.node:
            for name in node.input:
                self.readers[name].append(node)
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def linear(
        self, product: onnx.NodeProto, x: str, weight: str, transposed: bool, bias: str | None, nodes: tuple
    ) -> Linear:
        activation, more = self.activation_of(nodes[-1].output[0])
        nodes = (*nodes, *more)
        return Linear(product.name, x, weight, transposed, bias, activation, nodes[-1].output[0], nodes)

    def added_bias(self, product: onnx.NodeProto) -> tuple[str | None, tuple[onnx.NodeProto, ...]]:
        """The bias that the only reader of a product adds to it, and the nodes up to there."""
        readers = self.readers[product.output[0]]
        if len(readers) == 1 and readers[0].op_type == "Add" and product.output[0] not in self.outputs:
            other = next((name for name in readers[0].input if name != product.output[0]), "")
            width = self.stored[product.input[1]].dims[1]
            if other in self.stored and list(self.stored[other].dims) == [width]:
                return other, (product, readers[0])
        return None, (product,)

    def activation_of(self, value: str) -> tuple[str, tuple[onnx.NodeProto, ...]]:
        """The activation that all readers of a value compute together, recognized by what comes out for `SAMPLES`; the
        exporter writes one in many ways. Its last node comes last."""
        made, nodes = {value}, list[onnx.NodeProto]()
        frontier = list(self.readers[value])
        while frontier:
            node = frontier.pop(0)
            known = all(name in made or _is_scalar(self.constants.get(name)) for name in node.input)
            if node in nodes or node.op_type not in _POINTWISE or not known or made & self.outputs:
                continue
            nodes.append(node)
            made.add(node.output[0])
            frontier += self.readers[node.output[0]]
            leaves = [name for name in made if any(reader not in nodes for reader in self.readers[name])]
            if leaves in ([node.output[0]], []):
                name = self._recognized(value, nodes)
                if name:
                    return name, tuple(nodes)
        return "", ()

    def _recognized(self, value: str, nodes: list[onnx.NodeProto]) -> str:
        constants = {name: self.constants[name] for node in nodes for name in node.input if name in self.constants}
        body = helper.make_graph(
            nodes,
            "activation",
            [helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, [len(SAMPLES)])],
            [helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, [len(SAMPLES)])],
            [numpy_helper.from_array(numpy_helper.to_array(tensor), name) for name, tensor in constants.items()],
        )
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)])
        (found,) = ReferenceEvaluator(model).run(None, {value: SAMPLES})
        return next((n for n, wanted in ACTIVATIONS.items() if np.allclose(found, wanted(SAMPLES), atol=1e-5)), "")


def _is_plain(gemm: onnx.NodeProto) -> bool:
    usual = _attribute(gemm, "alpha", 1.0) == 1.0 and _attribute(gemm, "beta", 1.0) == 1.0
    return usual and not _attribute(gemm, "transA", 0)


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _rank(stored: Mapping[str, onnx.TensorProto], name: str) -> int | None:
    return len(stored[name].dims) if name in stored else None


def _is_scalar(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and int(np.prod(tensor.dims)) == 1

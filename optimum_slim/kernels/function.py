"""The model-local functions of SlimLinear: without our library, sessions rebuild the dense weight once and run that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from onnx import helper, numpy_helper
from onnx.onnx_pb import AttributeProto, FunctionProto, NodeProto, TensorProto

from optimum_slim.kernels.pattern import pattern_named

DOMAIN = "ai.optimum.slim"
VERSION = 1
ACTIVATIONS = ("", "Relu", "Gelu", "GeluTanh", "Silu")
OPERATORS: tuple[str, ...] = tuple(
    f"SlimLinear{grouped}{activation}" for grouped in ("", "Grouped") for activation in ACTIVATIONS
)

INPUTS = ["x", "mask", "values", "scale", "bias"]
ATTRIBUTES = ["K", "N", "pattern", "inputs", "outputs", "bits"]


def slim_node(
    op_type: str,
    inputs: Sequence[str],
    output: str,
    k: int,
    n: int,
    pattern: str,
    group_size: int | None = None,
    name: str = "",
) -> NodeProto:
    """A node of one of OPERATORS. Its inputs are the names of x, mask, values, scale and bias.

    Raises ValueError for an unknown operator or pattern, or a group_size that does not go with the operator.
    """
    _check_operator(op_type)
    shape = pattern_named(pattern)
    if _is_grouped(op_type) != (group_size is not None):
        raise ValueError(f"{op_type} {'needs a' if group_size is None else 'has no'} group_size")
    attributes: dict[str, Any] = {
        "K": k,
        "N": n,
        "pattern": pattern,
        "inputs": shape.inputs,
        "outputs": shape.outputs,
        "bits": 8,
    }
    if group_size is not None:
        attributes["group_size"] = group_size
    node = helper.make_node(op_type, list(inputs), [output], name=name, domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return node


def slim_functions(op_types: Iterable[str], opset: int = 18) -> list[FunctionProto]:
    """The functions of these operators and of those they call, for a model that imports the ONNX opset `opset`.

    Raises ValueError for an unknown operator, or an opset before 18 (no BitwiseAnd).
    """
    if opset < 18:
        raise ValueError(f"the functions need opset 18 or later, not {opset}")
    wanted = set(op_types)
    for op_type in wanted:
        _check_operator(op_type)
    wanted |= {_plain(op_type) for op_type in wanted}
    return [_function(op_type, opset) for op_type in OPERATORS if op_type in wanted]


def _check_operator(op_type: str) -> None:
    if op_type not in OPERATORS:
        raise ValueError(f"no operator is named {op_type!r}; there are {', '.join(OPERATORS)}")


def _is_grouped(op_type: str) -> bool:
    return op_type.startswith("SlimLinearGrouped")


def _plain(op_type: str) -> str:
    return "SlimLinearGrouped" if _is_grouped(op_type) else "SlimLinear"


def _function(op_type: str, opset: int) -> FunctionProto:
    attributes = ATTRIBUTES + (["group_size"] if _is_grouped(op_type) else [])
    body = Body()
    if op_type != _plain(op_type):
        body.call(_plain(op_type), attributes)
        _ACTIVATION_BODIES[op_type.removeprefix(_plain(op_type))](body)
    elif _is_grouped(op_type):
        _grouped_body(body)
    else:
        _plain_body(body)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_function(DOMAIN, op_type, INPUTS, ["y"], body.nodes, imports, attributes)


class Body:
    """Collects the nodes of a function; the methods return names of values."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def add(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any) -> str:
        return self.add("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def attribute(self, name: str) -> str:
        """An int attribute of the node, as an int64 tensor [1]."""
        reference = AttributeProto(name="value_int", ref_attr_name=name, type=AttributeProto.INT)
        scalar = self.add("Constant")
        self.nodes[-1].attribute.append(reference)
        return self.add("Reshape", scalar, self.constant([1], np.int64))

    def call(self, op_type: str, attributes: Sequence[str]) -> None:
        """The plain operator with all inputs and attributes of this function; its output is named linear."""
        node = helper.make_node(op_type, INPUTS, ["linear"], domain=DOMAIN)
        for name in attributes:
            kind = AttributeProto.STRING if name == "pattern" else AttributeProto.INT
            node.attribute.append(AttributeProto(name=name, ref_attr_name=name, type=kind))
        self.nodes.append(node)


def _weight(body: Body, values: str, zero: np.integer[Any]) -> str:
    """The dense weight [N, K] of the kept `values`: every block takes its place's row of a table whose row 0 is filled
    with `zero`, a scalar of the values' type."""
    n, k = body.attribute("N"), body.attribute("K")
    outputs, inputs = body.attribute("outputs"), body.attribute("inputs")
    first, one, minus_one = (body.constant([number], np.int64) for number in (0, 1, -1))

    def ceil_div(size: str, unit: str) -> str:
        return body.add("Div", body.add("Sub", body.add("Add", size, unit), one), unit)

    rows, columns = ceil_div(n, outputs), ceil_div(k, inputs)
    count, size = body.add("Mul", rows, columns), body.add("Mul", outputs, inputs)

    bits = body.add(
        "BitwiseAnd",
        body.add("Unsqueeze", "mask", one),
        body.constant([1, 2, 4, 8, 16, 32, 64, 128], np.uint8),
    )
    flags = body.add("Cast", body.add("Cast", bits, to=TensorProto.BOOL), to=TensorProto.INT32)
    kept = body.add("Slice", body.add("Reshape", flags, minus_one), first, count)
    place = body.add("Mul", body.add("CumSum", kept, body.constant(0, np.int64)), kept)

    zeros = body.add("Expand", body.constant([zero], zero.dtype), size)
    table = body.add("Reshape", body.add("Concat", zeros, values, axis=0), body.add("Concat", minus_one, size, axis=0))
    blocks = body.add("Gather", table, place, axis=0)
    grid = body.add("Reshape", blocks, body.add("Concat", rows, columns, outputs, inputs, axis=0))
    over_edge = body.add(
        "Reshape",
        body.add("Transpose", grid, perm=[0, 2, 1, 3]),
        body.add("Concat", body.add("Mul", rows, outputs), body.add("Mul", columns, inputs), axis=0),
    )
    ends = body.add("Concat", n, k, axis=0)
    return body.add("Slice", over_edge, body.constant([0, 0], np.int64), ends)


def _quantized(body: Body, x: str) -> tuple[str, str]:
    """The values of each row (last axis) of x as floats -127 to 127, and the rows' scales.

    A row with an infinity or NaN holds a NaN once it is multiplied, which then spoils its scale and so its outputs;
    the maximum alone would pass over it.
    """
    last = body.constant([-1], np.int64)
    largest = body.add(
        "Max", body.add("ReduceMax", body.add("Abs", x), last, keepdims=1), body.constant(1e-30, np.float32)
    )
    full = body.constant(127.0, np.float32)
    values = body.add("Round", body.add("Mul", x, body.add("Div", full, largest)))
    zero_or_nan = body.add("Mul", body.add("ReduceSum", values, last, keepdims=1), body.constant(0.0, np.float32))
    return values, body.add("Add", body.add("Div", largest, full), zero_or_nan)


def _plain_body(body: Body) -> None:
    """FORMAT.md's numbers. The two scales are applied one after the other: their product would be another float, and
    ONNX Runtime's fusion of MatMulInteger with such a product mistakes the rows' scales for one.

    Weights are multiplied as uint8, 128 more than they are: with int8, ONNX Runtime's products saturate on x86 without
    VNNI. A cast keeps the lowest eight bits, and turning the highest of them over adds 128."""
    middle = body.constant(128, np.uint8)
    unsigned = body.add("BitwiseXor", body.add("Cast", "values", to=TensorProto.UINT8), middle)
    weight = body.add("Transpose", _weight(body, unsigned, np.uint8(128)), perm=[1, 0])
    values, row_scale = _quantized(body, "x")
    rows = body.add("Cast", body.add("Add", values, body.constant(128.0, np.float32)), to=TensorProto.UINT8)
    sums = body.add("MatMulInteger", rows, weight, middle, middle)
    scaled = body.add("Mul", body.add("Cast", sums, to=TensorProto.FLOAT), row_scale)
    scale = body.add("Reshape", "scale", body.constant([-1], np.int64))
    body.add("Add", body.add("Mul", scaled, scale), "bias", output="y")


def _grouped_body(body: Body) -> None:
    """Values and weights times their scales, then a float product: ONNX has no integer product with groups."""
    n, k, size = body.attribute("N"), body.attribute("K"), body.attribute("group_size")
    groups = body.add("Div", k, size)
    leading = body.add("Shape", "x", end=-1)
    rows = body.add("Reshape", "x", body.add("Concat", leading, groups, size, axis=0), allowzero=1)
    values, row_scale = _quantized(body, rows)
    x = body.add("Reshape", body.add("Mul", values, row_scale), body.add("Concat", leading, k, axis=0), allowzero=1)

    grid = body.add("Reshape", _weight(body, "values", np.int8(0)), body.add("Concat", n, groups, size, axis=0))
    scale = body.add("Unsqueeze", "scale", body.constant([2], np.int64))
    scaled = body.add("Mul", body.add("Cast", grid, to=TensorProto.FLOAT), scale)
    weight = body.add("Transpose", body.add("Reshape", scaled, body.add("Concat", n, k, axis=0)), perm=[1, 0])
    body.add("Add", body.add("MatMul", x, weight), "bias", output="y")


def _relu(body: Body) -> None:
    body.add("Relu", "linear", output="y")


def _gelu(body: Body) -> None:
    error = body.add("Erf", body.add("Div", "linear", body.constant(np.sqrt(2), np.float32)))
    weighted = body.add("Mul", "linear", body.add("Add", error, body.constant(1.0, np.float32)))
    body.add("Mul", weighted, body.constant(0.5, np.float32), output="y")


def _gelu_tanh(body: Body) -> None:
    cube = body.add("Mul", body.add("Mul", "linear", "linear"), "linear")
    inner = body.add("Add", "linear", body.add("Mul", cube, body.constant(0.044715, np.float32)))
    tanh = body.add("Tanh", body.add("Mul", inner, body.constant(np.sqrt(2 / np.pi), np.float32)))
    weighted = body.add("Mul", "linear", body.add("Add", tanh, body.constant(1.0, np.float32)))
    body.add("Mul", weighted, body.constant(0.5, np.float32), output="y")


def _silu(body: Body) -> None:
    body.add("Mul", "linear", body.add("Sigmoid", "linear"), output="y")


_ACTIVATION_BODIES: dict[str, Callable[[Body], None]] = {
    "Relu": _relu,
    "Gelu": _gelu,
    "GeluTanh": _gelu_tanh,
    "Silu": _silu,
}

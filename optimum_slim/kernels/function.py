"""The model-local functions of SlimLinear: without our library, sessions rebuild the dense weight once and run that.

ONNX Runtime keeps what each node of the rebuilding makes until the last layer is done, so its bytes add up over the
whole model. Hence a body for each kind of pattern, of few nodes, with nothing wider than a byte for each weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import helper, numpy_helper
from onnx.onnx_pb import AttributeProto, FunctionProto, NodeProto, TensorProto

from optimum_slim.kernels.packing import MIDDLE
from optimum_slim.kernels.pattern import KINDS, pattern_named

DOMAIN = "ai.optimum.slim"
VERSION = 1
ACTIVATIONS = ("Relu", "Gelu", "GeluTanh", "Silu")
MEETINGS = ("Add", "Mul")  # of the outputs with another tensor of their shape
ENDINGS = ("", *ACTIVATIONS, *MEETINGS)
PLAIN = tuple(f"SlimLinear{kind}{grouped}" for kind in KINDS for grouped in ("", "Grouped"))
OPERATORS: tuple[str, ...] = tuple(f"{plain}{ending}" for plain in PLAIN for ending in ENDINGS)

INPUTS = ["x", "gaps", "values", "scale", "bias"]
OTHER = "other"  # the input that a meeting has behind them
ATTRIBUTES = ["K", "N", "pattern", "inputs", "outputs", "bits"]


def operator_name(pattern: str, ending: str = "", group_size: int | None = None) -> str:
    """The operator of a layer. Raises ValueError for an unknown pattern or ending."""
    if ending not in ENDINGS:
        raise ValueError(f"no ending is named {ending!r}; there are {', '.join(ENDINGS[1:])}")
    return f"SlimLinear{pattern_named(pattern).kind}{'' if group_size is None else 'Grouped'}{ending}"


def slim_node(
    inputs: Sequence[str],
    output: str,
    k: int,
    n: int,
    pattern: str,
    ending: str = "",
    group_size: int | None = None,
    name: str = "",
) -> NodeProto:
    """A node of one layer. Its inputs are the names of x, gaps, values, scale and bias, and of what a meeting meets.

    Raises ValueError as `operator_name`.
    """
    op_type, shape = operator_name(pattern, ending, group_size), pattern_named(pattern)
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


def slim_functions(op_types: Iterable[str], opset: int = 18, over_edge: bool = True) -> list[FunctionProto]:
    """The functions of these operators and of those they call, for a model that imports the ONNX opset `opset`.

    Args:
        over_edge: False where in all layers of the model the sizes of the blocks divide N and K: it saves a copy of
            each weight when the model is loaded.

    Raises ValueError for an unknown operator, or an opset before 18 (no BitwiseAnd).
    """
    if opset < 18:
        raise ValueError(f"the functions need opset 18 or later, not {opset}")
    wanted = set(op_types)
    for op_type in wanted - set(OPERATORS):
        raise ValueError(f"no operator is named {op_type!r}; there are {', '.join(OPERATORS)}")
    wanted |= {_plain(op_type)[0] for op_type in wanted}
    return [_function(op_type, opset, over_edge) for op_type in OPERATORS if op_type in wanted]


def _plain(op_type: str) -> tuple[str, str]:
    """The operator without ending, and the ending."""
    ending = max((one for one in ENDINGS if op_type.endswith(one)), key=len)
    return op_type.removesuffix(ending), ending


def _function(op_type: str, opset: int, over_edge: bool) -> FunctionProto:
    plain, ending = _plain(op_type)
    grouped = plain.endswith("Grouped")
    attributes = ATTRIBUTES + (["group_size"] if grouped else [])
    body = Body()
    if ending:
        body.call(plain, attributes)
        ENDING_BODIES[ending](body, "y")
    else:
        kind = plain.removeprefix("SlimLinear").removesuffix("Grouped")
        (_grouped_body if grouped else _plain_body)(body, partial(_WEIGHTS[kind], over_edge=over_edge))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    inputs = [*INPUTS, OTHER] if ending in MEETINGS else INPUTS
    return helper.make_function(DOMAIN, op_type, inputs, ["y"], body.nodes, imports, attributes)


def refer(
    node: NodeProto,
    kinds: Mapping[str, AttributeProto.AttributeType],
    called: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Gives a node of a function the attributes that the function is called with, of these names and types.

    Args:
        called: the function's name for an attribute, where it is another.
    """
    node.attribute.extend(
        AttributeProto(name=name, ref_attr_name=called.get(name, name), type=kind) for name, kind in kinds.items()
    )


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

    def summed(self, gaps: str) -> str:
        """Places, from the gaps before them. ONNX Runtime has no sum of bytes, and does not fold NonZero."""
        wide = self.add("Cast", gaps, to=TensorProto.INT32)
        return self.add("CumSum", wide, self.constant(0, np.int64))

    def filled(self, value: np.integer[Any], shape: str) -> str:
        """Layers of one shape share this: ONNX Runtime computes what is the same once."""
        return self.add("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([value], value.dtype)))

    def call(self, op_type: str, attributes: Sequence[str]) -> None:
        """The plain operator with its inputs and attributes of this function; its output is named linear."""
        node = helper.make_node(op_type, INPUTS, ["linear"], domain=DOMAIN)
        refer(node, dict.fromkeys(attributes, AttributeProto.INT) | {"pattern": AttributeProto.STRING})
        self.nodes.append(node)


# Each gives the dense weight [K, N] from the kept `values`; what is not kept gets the value `zero`, of their type.


def _dense(body: Body, values: str, zero: np.integer[Any], over_edge: bool) -> str:
    return body.add("Transpose", values, perm=[1, 0])


def _blocks(body: Body, values: str, zero: np.integer[Any], over_edge: bool) -> str:
    """Blocks [outputs, inputs] go to their places on a grid of rows and columns."""
    n, k = body.attribute("N"), body.attribute("K")
    outputs, inputs = body.attribute("outputs"), body.attribute("inputs")
    one = body.constant([1], np.int64)

    def ceil_div(size: str, unit: str) -> str:
        return body.add("Div", body.add("Sub", body.add("Add", size, unit), one), unit)

    rows, columns = ceil_div(n, outputs), ceil_div(k, inputs)
    places = body.add("Cast", body.summed(body.add("Unsqueeze", "gaps", one)), to=TensorProto.INT64)
    zeros = body.filled(zero, body.add("Concat", body.add("Mul", rows, columns), outputs, inputs, axis=0))
    blocks = body.add("ScatterND", zeros, places, values)
    grid = body.add("Reshape", blocks, body.add("Concat", rows, columns, outputs, inputs, axis=0))
    sizes = body.add("Concat", body.add("Mul", columns, inputs), body.add("Mul", rows, outputs), axis=0)
    weight = body.add("Reshape", body.add("Transpose", grid, perm=[1, 3, 0, 2]), sizes)
    if not over_edge:
        return weight
    return body.add("Slice", weight, body.constant([0, 0], np.int64), body.add("Concat", k, n, axis=0))


def _singles(body: Body, values: str, zero: np.integer[Any], over_edge: bool) -> str:
    """Weights go to their places on a line, input by input."""
    n, k = body.attribute("N"), body.attribute("K")
    pairs = body.add("Unsqueeze", "gaps", body.constant([1], np.int64))
    halves = body.add("BitShift", pairs, body.constant([0, 4], np.uint8), direction="RIGHT")
    gaps = body.add("BitwiseAnd", halves, body.constant([15], np.uint8))
    line = body.add("Reshape", gaps, body.constant([-1], np.int64))
    kept = body.add("Slice", line, body.constant([0], np.int64), body.add("Shape", values))
    zeros = body.filled(zero, body.add("Mul", k, n))
    weight = body.add("ScatterElements", zeros, body.summed(kept), values, axis=0)
    return body.add("Reshape", weight, body.add("Concat", k, n, axis=0))


_WEIGHTS: dict[str, Callable[..., str]] = {"": _dense, "Blocks": _blocks, "Singles": _singles}


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


def _plain_body(body: Body, weight_of: Callable[..., str]) -> None:
    """FORMAT.md's numbers. The two scales are applied one after the other: their product would be another float, and
    ONNX Runtime's fusion of MatMulInteger with such a product mistakes the rows' scales for one.

    Weights are multiplied as they are stored, uint8 and 128 more: with int8, ONNX Runtime's products saturate on x86
    without VNNI."""
    weight = weight_of(body, "values", np.uint8(MIDDLE))
    values, row_scale = _quantized(body, "x")
    shifted = body.add("Add", values, body.constant(MIDDLE, np.float32))
    middle = body.constant(MIDDLE, np.uint8)
    sums = body.add("MatMulInteger", body.add("Cast", shifted, to=TensorProto.UINT8), weight, middle, middle)
    scaled = body.add("Mul", body.add("Cast", sums, to=TensorProto.FLOAT), row_scale)
    scale = body.add("Reshape", "scale", body.constant([-1], np.int64))
    body.add("Add", body.add("Mul", scaled, scale), "bias", output="y")


def _grouped_body(body: Body, weight_of: Callable[..., str]) -> None:
    """Values and weights times their scales, then a float product: ONNX has no integer product with groups."""
    n, k, size = body.attribute("N"), body.attribute("K"), body.attribute("group_size")
    groups = body.add("Div", k, size)
    leading = body.add("Shape", "x", end=-1)
    rows = body.add("Reshape", "x", body.add("Concat", leading, groups, size, axis=0), allowzero=1)
    values, row_scale = _quantized(body, rows)
    x = body.add("Reshape", body.add("Mul", values, row_scale), body.add("Concat", leading, k, axis=0), allowzero=1)

    # Turning the highest bit over takes 128 away; a cast keeps the bits.
    turned = body.add("BitwiseXor", "values", body.constant(MIDDLE, np.uint8))
    weight = weight_of(body, body.add("Cast", turned, to=TensorProto.INT8), np.int8(0))
    grid = body.add("Reshape", weight, body.add("Concat", groups, size, n, axis=0))
    scale = body.add("Unsqueeze", body.add("Transpose", "scale", perm=[1, 0]), body.constant([1], np.int64))
    scaled = body.add("Mul", body.add("Cast", grid, to=TensorProto.FLOAT), scale)
    weight = body.add("Reshape", scaled, body.add("Concat", k, n, axis=0))
    body.add("Add", body.add("MatMul", x, weight), "bias", output="y")


def _relu(body: Body, y: str) -> None:
    body.add("Relu", "linear", output=y)


def _gelu(body: Body, y: str) -> None:
    error = body.add("Erf", body.add("Div", "linear", body.constant(np.sqrt(2), np.float32)))
    weighted = body.add("Mul", "linear", body.add("Add", error, body.constant(1.0, np.float32)))
    body.add("Mul", weighted, body.constant(0.5, np.float32), output=y)


def _gelu_tanh(body: Body, y: str) -> None:
    cube = body.add("Mul", body.add("Mul", "linear", "linear"), "linear")
    inner = body.add("Add", "linear", body.add("Mul", cube, body.constant(0.044715, np.float32)))
    tanh = body.add("Tanh", body.add("Mul", inner, body.constant(np.sqrt(2 / np.pi), np.float32)))
    weighted = body.add("Mul", "linear", body.add("Add", tanh, body.constant(1.0, np.float32)))
    body.add("Mul", weighted, body.constant(0.5, np.float32), output=y)


def _silu(body: Body, y: str) -> None:
    body.add("Mul", "linear", body.add("Sigmoid", "linear"), output=y)


def _met(meeting: str, body: Body, y: str) -> None:
    body.add(meeting, "linear", OTHER, output=y)


# Each writes from the value "linear" to a value of another name.
ENDING_BODIES: dict[str, Callable[[Body, str], None]] = {
    "Relu": _relu,
    "Gelu": _gelu,
    "GeluTanh": _gelu_tanh,
    "Silu": _silu,
    **{meeting: partial(_met, meeting) for meeting in MEETINGS},
}

"""SlimMatMulNBits: ONNX Runtime's MatMulNBits as our kernels run it. Its model-local function is the stock operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import helper
from onnx.onnx_pb import AttributeProto, FunctionProto, NodeProto

from optimum_slim.kernels.function import DOMAIN, MEETINGS, OTHER, VERSION, refer

BLOCKED, STOCK = "SlimMatMulNBits", "MatMulNBits"
BLOCKED_OPERATORS = (BLOCKED, *(f"{BLOCKED}{meeting}" for meeting in MEETINGS))
STOCK_DOMAIN = "com.microsoft"
INPUTS = ["x", "values", "scales", "zero_points"]
OTHER_AT = 3  # where a meeting has what it meets: zero points, which may be left out, come last
SIZES = ["K", "N", "bits", "block_size"]
ROUNDED = 4  # the stock operator's accuracy_level under which it rounds activations as ours does


def blocked_node(inputs: Sequence[str], output: str, name: str = "", meeting: str = "", **sizes: int) -> NodeProto:
    """A node; its inputs are the names of x, values, scales, of what a meeting meets and, where there are any, of zero
    points; its `SIZES`."""
    return _node(f"{BLOCKED}{meeting}", DOMAIN, inputs, output, name, sizes)


def stock_node(inputs: Sequence[str], output: str, name: str = "", **attributes: int) -> NodeProto:
    """Likewise ONNX Runtime's own."""
    return _node(STOCK, STOCK_DOMAIN, inputs, output, name, attributes)


def is_blocked(inputs: int, K: int, N: int, bits: int, block_size: int) -> bool:  # noqa: N803
    """Whether our kernels have a product of so many inputs and of such sizes."""
    return K % block_size == 0 and (bits == 4 or (bits == 8 and inputs == 3))


def packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Integers [rows, columns] of 4 or 8 bits as bytes; an odd row ends with a 0."""
    if bits == 8:
        return values
    even = np.pad(values, ((0, 0), (0, values.shape[1] % 2)))
    return even[:, ::2] | even[:, 1::2] << np.uint8(4)


def blocked_function(op_type: str = BLOCKED, opset: int = 21) -> FunctionProto:
    """The function of one of `BLOCKED_OPERATORS`, for a model that imports the ONNX opset `opset`."""
    meeting = op_type.removeprefix(BLOCKED)
    nodes = [stock_node(INPUTS, "linear" if meeting else "y", accuracy_level=ROUNDED)]
    refer(nodes[0], dict.fromkeys(SIZES, AttributeProto.INT))
    if meeting:
        nodes.append(helper.make_node(meeting, ["linear", OTHER], ["y"]))
    domains = {"": opset, STOCK_DOMAIN: 1, DOMAIN: VERSION}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    inputs = [*INPUTS[:OTHER_AT], OTHER, *INPUTS[OTHER_AT:]] if meeting else INPUTS
    return helper.make_function(DOMAIN, op_type, inputs, ["y"], nodes, imports, SIZES)


def _node(
    op_type: str, domain: str, inputs: Sequence[str], output: str, name: str, attributes: Mapping[str, int]
) -> NodeProto:
    node = helper.make_node(op_type, list(inputs), [output], name=name, domain=domain)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return node

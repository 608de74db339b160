"""SlimMatMulNBits: ONNX Runtime's MatMulNBits as our kernels run it. Its model-local function is the stock operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import helper
from onnx.onnx_pb import AttributeProto, FunctionProto, NodeProto

from optimum_slim.kernels.function import DOMAIN, VERSION, refer

BLOCKED, STOCK = "SlimMatMulNBits", "MatMulNBits"
STOCK_DOMAIN = "com.microsoft"
INPUTS = ["x", "values", "scales", "zero_points"]
SIZES = ["K", "N", "bits", "block_size"]
ROUNDED = 4  # the stock operator's accuracy_level under which it rounds activations as ours does


def blocked_node(inputs: Sequence[str], output: str, name: str = "", **sizes: int) -> NodeProto:
    """A node; its inputs are the names of x, values, scales and, where there are any, zero points; its `SIZES`."""
    return _node(BLOCKED, DOMAIN, inputs, output, name, sizes)


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


def blocked_function(opset: int = 21) -> FunctionProto:
    """Its function, for a model that imports the ONNX opset `opset`."""
    node = stock_node(INPUTS, "y", accuracy_level=ROUNDED)
    refer(node, dict.fromkeys(SIZES, AttributeProto.INT))
    domains = {"": opset, STOCK_DOMAIN: 1, DOMAIN: VERSION}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    return helper.make_function(DOMAIN, BLOCKED, INPUTS, ["y"], [node], imports, SIZES)


def _node(
    op_type: str, domain: str, inputs: Sequence[str], output: str, name: str, attributes: Mapping[str, int]
) -> NodeProto:
    node = helper.make_node(op_type, list(inputs), [output], name=name, domain=domain)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return node

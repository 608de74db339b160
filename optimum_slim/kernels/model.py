"""A model of one SlimLinear or SlimMatMulNBits: for whoever tests or times a layer by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.onnx_pb import ModelProto, TensorProto

from optimum_slim.kernels.blocked import INPUTS, OTHER_AT, STOCK_DOMAIN, blocked_function, blocked_node
from optimum_slim.kernels.function import DOMAIN, MEETINGS, OTHER, VERSION, slim_functions, slim_node
from optimum_slim.kernels.packing import pack

TENSORS = ("gaps", "values", "scale", "bias")  # the initializers' names


def layer_model(
    weight: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    pattern: str,
    ending: str = "",
    group_size: int | None = None,
    leading: Sequence[Any] = ("rows",),
    functions: bool = True,
) -> ModelProto:
    """y = the layer of x, or of x and other, as FORMAT.md says.

    Args:
        weight: [N, K]. scale: [N, G]. bias: [N].
        leading: the dimensions of x before K, names or numbers.
        functions: False leaves the function out, so that only a session with our library loads the model.
    """
    n, k = weight.shape
    gaps, values = pack(weight, pattern)
    tensors: tuple[NDArray[Any], ...] = (gaps, values, scale, bias)
    other = [OTHER] if ending in MEETINGS else []
    node = slim_node(["x", *TENSORS, *other], "y", k, n, pattern, ending, group_size)
    graph = helper.make_graph(
        [node],
        "layer",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [*leading, k]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [*leading, n]) for name in other),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*leading, n])],
        [numpy_helper.from_array(a, name) for name, a in zip(TENSORS, tensors)],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    bodies = slim_functions([node.op_type]) if functions else []
    return helper.make_model(graph, opset_imports=imports, functions=bodies, ir_version=9)


def blocked_model(
    values: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8] | None = None,
    bits: int = 4,
    functions: bool = True,
    meeting: str = "",
) -> ModelProto:
    """y = x times the weight that stands in blocks, or what becomes of it where it meets other, as FORMAT.md says.

    Args:
        values: [N, blocks, block * bits / 8]. scales: [N * blocks] or [N, blocks]. zero_points: [N, bytes].
        functions: as `layer_model`.
    """
    n, blocks, size = values.shape
    block = size * 8 // bits
    tensors: dict[str, NDArray[Any]] = {"values": values, "scales": scales}
    if zero_points is not None:
        tensors["zero_points"] = zero_points
    other, inputs = [OTHER] if meeting else [], [INPUTS[0], *tensors]
    inputs[OTHER_AT:OTHER_AT] = other
    node = blocked_node(inputs, "y", meeting=meeting, K=blocks * block, N=n, bits=bits, block_size=block)
    graph = helper.make_graph(
        [node],
        "layer",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", blocks * block]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", n]) for name in other),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", n])],
        [numpy_helper.from_array(a, name) for name, a in tensors.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(STOCK_DOMAIN, 1), helper.make_opsetid(DOMAIN, VERSION)]
    bodies = [blocked_function(node.op_type)] if functions else []
    return helper.make_model(graph, opset_imports=imports, functions=bodies, ir_version=10)

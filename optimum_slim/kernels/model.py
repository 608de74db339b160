"""A model of one SlimLinear: for whoever tests or times a layer by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.onnx_pb import ModelProto, TensorProto

from optimum_slim.kernels.function import DOMAIN, VERSION, slim_functions, slim_node
from optimum_slim.kernels.packing import pack

TENSORS = ("gaps", "values", "scale", "bias")  # the initializers' names


def layer_model(
    weight: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    pattern: str,
    activation: str = "",
    group_size: int | None = None,
    leading: Sequence[Any] = ("rows",),
    functions: bool = True,
) -> ModelProto:
    """y = the layer of x, as FORMAT.md says.

    Args:
        weight: [N, K]. scale: [N, G]. bias: [N].
        leading: the dimensions of x before K, names or numbers.
        functions: False leaves the function out, so that only a session with our library loads the model.
    """
    n, k = weight.shape
    gaps, values = pack(weight, pattern)
    tensors: tuple[NDArray[Any], ...] = (gaps, values, scale, bias)
    node = slim_node(["x", *TENSORS], "y", k, n, pattern, activation, group_size)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*leading, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*leading, n])],
        [numpy_helper.from_array(a, name) for name, a in zip(TENSORS, tensors)],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    bodies = slim_functions([node.op_type]) if functions else []
    return helper.make_model(graph, opset_imports=imports, functions=bodies, ir_version=9)

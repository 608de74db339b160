"""SlimResidualNorm's node, and its model-local function of stock operators."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import helper
from onnx.onnx_pb import AttributeProto, FunctionProto, NodeProto

from optimum_slim.kernels.function import DOMAIN, VERSION, Body, refer

RESIDUAL_NORM = "SlimResidualNorm"
INPUTS = ["a", "b", "weight", "bias"]


def residual_norm_node(inputs: Sequence[str], output: str, epsilon: float, name: str = "") -> NodeProto:
    """A node; its inputs are the names of both summands, of the norm's weight and of its bias."""
    return helper.make_node(RESIDUAL_NORM, list(inputs), [output], name=name, domain=DOMAIN, epsilon=epsilon)


def residual_norm_function(opset: int = 18) -> FunctionProto:
    """Its function, for a model that imports the ONNX opset `opset`. The sum is a Sum: ONNX Runtime would fuse Add and
    LayerNormalization into one operator that is slower than both."""
    body = Body()
    norm = helper.make_node("LayerNormalization", [body.add("Sum", "a", "b"), "weight", "bias"], ["y"], axis=-1)
    refer(norm, {"epsilon": AttributeProto.FLOAT})
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_function(DOMAIN, RESIDUAL_NORM, INPUTS, ["y"], [*body.nodes, norm], imports, ["epsilon"])

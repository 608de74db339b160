"""The node of SlimResidualNorm, and its and SlimRmsNorm's (arXiv:1910.07467) functions of stock operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper
from onnx.onnx_pb import AttributeProto, FunctionProto, NodeProto

from optimum_slim.kernels.function import DOMAIN, VERSION, Body, refer

RESIDUAL_NORM, RMS_NORM = "SlimResidualNorm", "SlimRmsNorm"
INPUTS = ["a", "b", "weight", "bias"]
RMS_INPUTS = ["x", "weight"]


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


def rms_norm_function(opset: int = 18) -> FunctionProto:
    """Its function, for a model that imports the ONNX opset `opset`: ONNX Runtime makes one operator of these nodes."""
    body = Body()
    square = body.add("Pow", "x", body.constant(2.0, np.float32))
    mean = body.add("ReduceMean", square, body.constant([-1], np.int64), keepdims=1)
    body.nodes.append(helper.make_node("Constant", [], ["epsilon"]))
    body.nodes[-1].attribute.append(
        AttributeProto(name="value_float", ref_attr_name="epsilon", type=AttributeProto.FLOAT)
    )
    root = body.add("Sqrt", body.add("Add", mean, "epsilon"))
    scaled = body.add("Mul", "x", body.add("Div", body.constant(1.0, np.float32), root))
    body.add("Mul", scaled, "weight", output="y")
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_function(DOMAIN, RMS_NORM, RMS_INPUTS, ["y"], body.nodes, imports, ["epsilon"])

"""The nodes of SlimAttention, SlimRotaryAttention and SlimPackedAttention, and their model-local functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper
from onnx.onnx_pb import AttributeProto, FunctionProto, NodeProto

from optimum_slim.kernels.function import DOMAIN, VERSION, Body, refer

ATTENTION = "SlimAttention"
INPUTS = ["query", "key", "value", "mask"]

ROTARY_ATTENTION = "SlimRotaryAttention"
PACKED_ATTENTION = "SlimPackedAttention"
CACHED_INPUTS = [*INPUTS, "past_key", "past_value"]  # of ONNX's Attention
ANGLES = ["query_cos", "query_sin", "key_cos", "key_sin"]
ROTARY_INPUTS = [*CACHED_INPUTS, *ANGLES]
PACKED_INPUTS = ["packed", *CACHED_INPUTS[3:], "cos", "sin"]
CACHED_OUTPUTS = ["y", "present_key", "present_value"]
CACHED_ATTRIBUTES = {
    "q_num_heads": AttributeProto.INT,
    "kv_num_heads": AttributeProto.INT,
    "scale": AttributeProto.FLOAT,
}
CACHED_OPSET = 23  # of ONNX, the first with Attention and RotaryEmbedding


def attention_node(inputs: Sequence[str], output: str, heads: int, name: str = "") -> NodeProto:
    """A node; its inputs are the names of query, key, value [batch, tokens, width] and the added mask."""
    return helper.make_node(ATTENTION, list(inputs), [output], name=name, domain=DOMAIN, heads=heads)


def attention_function(opset: int = 18) -> FunctionProto:
    """Its function, for a model that imports the ONNX opset `opset`."""
    body = Body()
    copied, rest = body.constant([0, 0], np.int64), body.constant([-1], np.int64)
    split = body.add("Concat", copied, body.attribute("heads"), rest, axis=0)

    def by_head(x: str, *perm: int) -> str:
        return body.add("Transpose", body.add("Reshape", x, split), perm=list(perm))

    scores = body.add("MatMul", by_head("query", 0, 2, 1, 3), by_head("key", 0, 2, 3, 1))
    shares = body.add("Softmax", body.add("Add", scores, "mask"), axis=-1)
    mixed = body.add("Transpose", body.add("MatMul", shares, by_head("value", 0, 2, 1, 3)), perm=[0, 2, 1, 3])
    body.add("Reshape", mixed, body.add("Concat", copied, rest, axis=0), output="y")
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_function(DOMAIN, ATTENTION, INPUTS, ["y"], body.nodes, imports, ["heads"])


def cached_attention_node(
    op_type: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", **attributes: Any
) -> NodeProto:
    """A node of `ROTARY_ATTENTION` or `PACKED_ATTENTION`; its inputs and outputs are the names of `ROTARY_INPUTS` or
    `PACKED_INPUTS`, and `CACHED_OUTPUTS`; its `CACHED_ATTRIBUTES`."""
    return helper.make_node(op_type, list(inputs), list(outputs), name=name, domain=DOMAIN, **attributes)


def rotary_attention_function() -> FunctionProto:
    """The function of SlimRotaryAttention: ONNX's own RotaryEmbedding, of queries and of keys, and its Attention."""
    nodes = []
    for name, heads in (("query", "q_num_heads"), ("key", "kv_num_heads")):
        turned = helper.make_node("RotaryEmbedding", [name, f"{name}_cos", f"{name}_sin"], [f"turned_{name}"])
        refer(turned, {"num_heads": AttributeProto.INT}, {"num_heads": heads})
        nodes.append(turned)
    nodes.append(helper.make_node("Attention", ["turned_query", "turned_key", *CACHED_INPUTS[2:]], CACHED_OUTPUTS))
    refer(nodes[-1], CACHED_ATTRIBUTES)
    imports = [helper.make_opsetid("", CACHED_OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_function(
        DOMAIN, ROTARY_ATTENTION, ROTARY_INPUTS, CACHED_OUTPUTS, nodes, imports, list(CACHED_ATTRIBUTES)
    )


def packed_attention_function() -> FunctionProto:
    """The function of SlimPackedAttention, for a model with SlimRotaryAttention's; the past tells a head's size."""
    body = Body()
    size = body.add("Shape", "past_key", start=3, end=4)
    heads, kv_heads = (body.add("Mul", body.attribute(name), size) for name in ("q_num_heads", "kv_num_heads"))
    widths = body.add("Concat", heads, kv_heads, kv_heads, axis=0)
    body.nodes.append(helper.make_node("Split", ["packed", widths], INPUTS[:3], axis=-1))
    angles = ["cos", "sin", "cos", "sin"]
    body.nodes.append(cached_attention_node(ROTARY_ATTENTION, [*CACHED_INPUTS, *angles], CACHED_OUTPUTS))
    refer(body.nodes[-1], CACHED_ATTRIBUTES)
    imports = [helper.make_opsetid("", CACHED_OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_function(
        DOMAIN, PACKED_ATTENTION, PACKED_INPUTS, CACHED_OUTPUTS, body.nodes, imports, list(CACHED_ATTRIBUTES)
    )

"""Queries, keys and values of one node, and gates in the node of what they let through: they read the same input."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from optimum_slim.deploy.graph import add_functions, opset_of, replace_node
from optimum_slim.deploy.linears import activation_of
from optimum_slim.deploy.wiring import Wiring
from optimum_slim.kernels.attention import (
    PACKED_ATTENTION,
    ROTARY_ATTENTION,
    cached_attention_node,
    packed_attention_function,
)
from optimum_slim.kernels.blocked import BLOCKED
from optimum_slim.kernels.function import ACTIVATIONS, DOMAIN, PLAIN
from optimum_slim.kernels.joined import MULTIPLE, joined_function, joined_node

_QUERY_ANGLES, _KEY_ANGLES = slice(6, 8), slice(8, 10)  # of SlimRotaryAttention's inputs


def join_linears(graph: onnx.ModelProto) -> int:
    """Makes the linears of queries, keys and values one node, and each linear that is multiplied by an activated other
    one with it, in place, where these read the same input and are stored alike; returns how many nodes it made."""
    made = [*_join_projections(graph), *_join_gates(graph)]
    add_functions(graph, [joined_function(name, opset_of(graph)) for name in sorted(set(made))])
    return len(made)


def _join_projections(graph: onnx.ModelProto) -> list[str]:
    wiring, made = Wiring(graph), list[str]()
    for attention in [one for one in graph.graph.node if one.op_type == ROTARY_ATTENTION]:
        linears = [_linear(wiring, name) for name in attention.input[:3]]
        found = [one for one in linears if one is not None]
        if attention.input[_QUERY_ANGLES] != attention.input[_KEY_ANGLES] or len(found) < 3 or not _alike(found):
            continue
        packed = f"{attention.name}.packed"
        joined = joined_node(found, packed)
        replace_node(graph, found[0], joined)
        for old in found[1:]:
            graph.graph.node.remove(old)
        attributes = {one.name: helper.get_attribute_value(one) for one in attention.attribute}
        inputs = [packed, *attention.input[3:6], *attention.input[_QUERY_ANGLES]]
        replace_node(
            graph,
            attention,
            cached_attention_node(PACKED_ATTENTION, inputs, attention.output, attention.name, **attributes),
        )
        made.append(joined.op_type)
    if made:
        add_functions(graph, [packed_attention_function()])
    return made


def _join_gates(graph: onnx.ModelProto) -> list[str]:
    wiring, made = Wiring(graph), list[str]()
    for node in list(graph.graph.node):
        gate, activation, more = _gate(wiring, node)
        if not activation:
            continue
        product = wiring.only_reader((more[-1] if more else node).output[0], "Mul")
        if product is None:
            continue
        let_through = next((one for name in product.input if (one := _linear(wiring, name)) is not None), None)
        if let_through is None or not _alike([gate, let_through], outputs=True):
            continue
        joined = joined_node([gate, let_through], product.output[0], activation)
        for old in (node, let_through, *more):
            graph.graph.node.remove(old)
        replace_node(graph, product, joined)
        made.append(joined.op_type)
    return made


def _linear(wiring: Wiring, value: str) -> onnx.NodeProto | None:
    """The linear of ours without an ending that makes a value for one reader alone."""
    node = wiring.makers.get(value)
    ours = node is not None and node.domain == DOMAIN and node.op_type in (*PLAIN, BLOCKED)
    return node if ours and wiring.read_once(value) else None


def _gate(wiring: Wiring, node: onnx.NodeProto) -> tuple[onnx.NodeProto, str, Sequence[onnx.NodeProto]]:
    """A linear without its activation, the activation, and the nodes that compute it where they are apart."""
    activation = next((one for one in ACTIVATIONS if node.op_type in {f"{plain}{one}" for plain in PLAIN}), "")
    if node.domain == DOMAIN and activation:
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        plain.op_type = node.op_type.removesuffix(activation)
        return plain, activation, ()
    if node.domain == DOMAIN and node.op_type == BLOCKED:
        return (node, *activation_of(wiring, node.output[0]))
    return node, "", ()


def _alike(linears: Sequence[onnx.NodeProto], outputs: bool = False) -> bool:
    """Whether linears can be joined: they differ in weights alone, and in how many `outputs` they have unless told."""
    told = [
        (one.op_type, one.input[0], len(one.input), {a.name: helper.get_attribute_value(a) for a in one.attribute})
        for one in linears
    ]
    counts = [attributes.pop("N") for *_, attributes in told]
    equal = all(one == told[0] for one in told) and (not outputs or len(set(counts)) == 1)
    return equal and all(count % MULTIPLE == 0 for count in counts)

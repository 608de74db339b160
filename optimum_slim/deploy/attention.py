"""Attention in an exported graph, with fewer passes over its tensors: same results, stock operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from optimum_slim.deploy.graph import (
    add_constant,
    add_functions,
    add_initializer,
    drop_unused,
    initializer,
    opset_of,
    replace_node,
    stored_array,
)
from optimum_slim.deploy.wiring import Wiring, attribute_of
from optimum_slim.kernels.attention import attention_function, attention_node

_MOVES = ("Reshape", "Transpose")  # what only moves values, so that a scale may pass it


def fold_scales(graph: onnx.ModelProto) -> int:
    """Takes the two scales of a product of queries and keys out of the graph, in place; returns how many Muls went.

    torch's attention scales both by d ** -1/4. Here the queries' weights take both scales, if nothing stands between
    that a scale may not pass, as rotary embeddings would; else the queries' Mul does.
    """
    wiring = Wiring(graph)
    gone = 0
    for product in [node for node in graph.graph.node if node.op_type == "MatMul"]:
        queries, keys = (_scaled(wiring, name) for name in product.input)
        if keys is None or queries is None:
            continue
        product.input[1] = keys.value
        graph.graph.node.remove(keys.node)
        gone += 1
        linear = _linear_before(wiring, queries.value)
        if linear is None:
            name = f"{queries.node.output[0]}.scale"
            add_constant(graph, name, np.array(queries.scale * keys.scale, np.float32))
            del queries.node.input[:]
            queries.node.input.extend([queries.value, name])
        else:
            for name in linear:
                _scale_initializer(graph, name, queries.scale * keys.scale)
            product.input[0] = queries.value
            graph.graph.node.remove(queries.node)
            gone += 1
        wiring = Wiring(graph)
    drop_unused(graph)
    return gone


def fuse_attention(graph: onnx.ModelProto) -> int:
    """Makes every attention without a cache one SlimAttention node, in place; returns how many.

    Scores must be scaled already (`fold_scales`), and shapes written down (`freeze_shapes`).
    """
    made = 0
    for softmax in [node for node in graph.graph.node if node.op_type == "Softmax"]:
        found = _attention(Wiring(graph), softmax)
        if found is None:
            continue
        inputs, heads, nodes = found
        last = nodes[-1]
        name = f"{softmax.name.rpartition('/')[0]}/SlimAttention"
        replace_node(graph, last, attention_node(inputs, last.output[0], heads, name))
        for node in nodes[:-1]:
            graph.graph.node.remove(node)
        made += 1
    if made:
        add_functions(graph, [attention_function(opset_of(graph))])
    return made


@dataclass(frozen=True)
class _Scaled:
    """`node` multiplies `value` by the constant `scale`, for one reader alone."""

    node: onnx.NodeProto
    value: str
    scale: float


def _scaled(wiring: Wiring, name: str) -> _Scaled | None:
    node = wiring.made_by(name, "Mul")
    if node is None:
        return None
    for value, other in (tuple(node.input), tuple(reversed(node.input))):
        scale = wiring.constant(other)
        if scale is not None and scale.size == 1:
            return _Scaled(node, value, scale.item())
    return None


def _linear_before(wiring: Wiring, name: str) -> tuple[str, ...] | None:
    """The weight and bias that make a value, if it was only moved since and nothing else reads it."""
    while name in wiring.makers and wiring.read_once(name) and wiring.makers[name].op_type in _MOVES:
        name = wiring.makers[name].input[0]
    node = wiring.makers.get(name)
    if node is None or not wiring.read_once(name):
        return None
    bias: tuple[str, ...] = ()
    if node.op_type == "Add":
        stored = [one for one in node.input if one in wiring.stored]
        made = [one for one in node.input if one in wiring.makers]
        if len(stored) != 1 or len(made) != 1 or not wiring.read_once(made[0]):
            return None
        bias, node = (stored[0],), wiring.makers[made[0]]
    if node.op_type != "MatMul" or node.input[1] not in wiring.stored:
        return None
    names = (node.input[1], *bias)
    return names if all(wiring.read_once(one) for one in names) else None


def _attention(wiring: Wiring, softmax: onnx.NodeProto) -> tuple[list[str], int, list[onnx.NodeProto]] | None:
    """Around a Softmax: the inputs query, key, value and mask, the heads, and the nodes of attention, in order."""
    add = wiring.made_by(softmax.input[0], "Add")
    product = wiring.made_by(add.input[0], "MatMul") if add is not None else None
    mixed = wiring.only_reader(softmax.output[0], "MatMul")
    back = wiring.only_reader(mixed.output[0], "Transpose") if mixed is not None else None
    joined = wiring.only_reader(back.output[0], "Reshape") if back is not None else None
    if add is None or product is None or mixed is None or back is None or joined is None:
        return None
    parts = [
        _by_head(wiring, product.input[0], [0, 2, 1, 3]),
        _by_head(wiring, product.input[1], [0, 2, 3, 1]),
        _by_head(wiring, mixed.input[1], [0, 2, 1, 3]),
    ]
    if any(part is None for part in parts) or attribute_of(back, "perm", None) != [0, 2, 1, 3]:
        return None
    split = [part for part in parts if part is not None]
    heads = {count for _, count, _ in split}
    if len(heads) != 1:
        return None
    nodes = [node for _, _, both in split for node in both]
    inputs = [*(source for source, _, _ in split), add.input[1]]
    return inputs, heads.pop(), [*nodes, product, add, softmax, mixed, back, joined]


def _by_head(wiring: Wiring, name: str, perm: list[int]) -> tuple[str, int, list[onnx.NodeProto]] | None:
    """The source of a value that is split into heads and turned, [batch, tokens, width], and how many heads."""
    turned = wiring.made_by(name, "Transpose")
    split = wiring.made_by(turned.input[0], "Reshape") if turned is not None else None
    sizes = wiring.constant(split.input[1]) if split is not None else None
    if turned is None or split is None or sizes is None or attribute_of(turned, "perm", None) != perm:
        return None
    if sizes.shape != (4,) or list(sizes[:2]) not in ([0, 0], [0, -1]) or sizes[2] < 1:
        return None
    return split.input[0], int(sizes[2]), [split, turned]


def _scale_initializer(graph: onnx.ModelProto, name: str, scale: float) -> None:
    value = stored_array(graph, name) * np.float32(scale)
    graph.graph.initializer.remove(initializer(graph, name))
    add_initializer(graph, name, value)

"""Attention in an exported graph, with fewer passes over its tensors: same results, stock operators."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

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
from optimum_slim.kernels.attention import attention_function, attention_node

_MOVES = ("Reshape", "Transpose")  # what only moves values, so that a scale may pass it


def fold_scales(graph: onnx.ModelProto) -> int:
    """Takes the two scales of a product of queries and keys out of the graph, in place; returns how many Muls went.

    torch's attention scales both by d ** -1/4. Here the queries' weights take both scales, if nothing stands between
    that a scale may not pass, as rotary embeddings would; else the queries' Mul does.
    """
    look = _Producers(graph)
    gone = 0
    for product in [node for node in graph.graph.node if node.op_type == "MatMul"]:
        queries, keys = (look.scaled(name) for name in product.input)
        if keys is None or queries is None:
            continue
        product.input[1] = keys.value
        graph.graph.node.remove(keys.node)
        gone += 1
        linear = look.linear_before(queries.value)
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
        look = _Producers(graph)
    drop_unused(graph)
    return gone


def fuse_attention(graph: onnx.ModelProto) -> int:
    """Makes every attention without a cache one SlimAttention node, in place; returns how many.

    Scores must be scaled already (`fold_scales`), and shapes written down (`freeze_shapes`).
    """
    made = 0
    for softmax in [node for node in graph.graph.node if node.op_type == "Softmax"]:
        found = _Producers(graph).attention(softmax)
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


class _Scaled:
    """`node` multiplies `value` by the constant `scale`, for one reader alone."""

    def __init__(self, node: onnx.NodeProto, value: str, scale: float):
        self.node, self.value, self.scale = node, value, scale


class _Producers:
    """Who makes each value, and how many read it."""

    def __init__(self, graph: onnx.ModelProto):
        self.graph = graph
        self.of = {output: node for node in graph.graph.node for output in node.output}
        self.readers: dict[str, int] = {value.name: 1 for value in graph.graph.output}
        for node in graph.graph.node:
            for name in node.input:
                self.readers[name] = self.readers.get(name, 0) + 1

    def alone(self, name: str) -> bool:
        return self.readers.get(name, 0) == 1

    def scaled(self, name: str) -> _Scaled | None:
        node = self.of.get(name)
        if node is None or node.op_type != "Mul" or not self.alone(name):
            return None
        for value, other in (tuple(node.input), tuple(reversed(node.input))):
            scale = self.constant(other)
            if scale is not None and scale.size == 1:
                return _Scaled(node, value, scale.item())
        return None

    def linear_before(self, name: str) -> tuple[str, ...] | None:
        """The weight and bias that make a value, if it was only moved since and nothing else reads it."""
        while name in self.of and self.alone(name) and self.of[name].op_type in _MOVES:
            name = self.of[name].input[0]
        node = self.of.get(name)
        if node is None or not self.alone(name):
            return None
        bias: tuple[str, ...] = ()
        if node.op_type == "Add":
            stored = [one for one in node.input if initializer(self.graph, one) is not None]
            made = [one for one in node.input if one in self.of]
            if len(stored) != 1 or len(made) != 1 or not self.alone(made[0]):
                return None
            bias, node = (stored[0],), self.of[made[0]]
        if node.op_type != "MatMul" or initializer(self.graph, node.input[1]) is None:
            return None
        names = (node.input[1], *bias)
        return names if all(self.alone(one) for one in names) else None

    def attention(self, softmax: onnx.NodeProto) -> tuple[list[str], int, list[onnx.NodeProto]] | None:
        """Around a Softmax: the inputs query, key, value and mask, the heads, and the nodes of attention, in order."""
        add = self._made(softmax.input[0], "Add")
        product = self._made(add.input[0], "MatMul") if add is not None else None
        mixed = self._only_reader(softmax.output[0], "MatMul")
        back = self._only_reader(mixed.output[0], "Transpose") if mixed is not None else None
        joined = self._only_reader(back.output[0], "Reshape") if back is not None else None
        if add is None or product is None or mixed is None or back is None or joined is None:
            return None
        parts = [
            self._by_head(product.input[0], [0, 2, 1, 3]),
            self._by_head(product.input[1], [0, 2, 3, 1]),
            self._by_head(mixed.input[1], [0, 2, 1, 3]),
        ]
        if any(part is None for part in parts) or _permutation(back) != [0, 2, 1, 3]:
            return None
        split = [part for part in parts if part is not None]
        heads = {count for _, count, _ in split}
        if len(heads) != 1:
            return None
        nodes = [node for _, _, both in split for node in both]
        inputs = [*(source for source, _, _ in split), add.input[1]]
        return inputs, heads.pop(), [*nodes, product, add, softmax, mixed, back, joined]

    def _by_head(self, name: str, perm: list[int]) -> tuple[str, int, list[onnx.NodeProto]] | None:
        """The source of a value that is split into heads and turned, [batch, tokens, width], and how many heads."""
        turned = self._made(name, "Transpose")
        split = self._made(turned.input[0], "Reshape") if turned is not None else None
        sizes = self.constant(split.input[1]) if split is not None else None
        if turned is None or split is None or sizes is None or _permutation(turned) != perm:
            return None
        if sizes.shape != (4,) or list(sizes[:2]) not in ([0, 0], [0, -1]) or sizes[2] < 1:
            return None
        return split.input[0], int(sizes[2]), [split, turned]

    def _made(self, name: str, op_type: str) -> onnx.NodeProto | None:
        node = self.of.get(name)
        return node if node is not None and node.op_type == op_type and self.alone(name) else None

    def _only_reader(self, name: str, op_type: str) -> onnx.NodeProto | None:
        readers = [node for node in self.graph.graph.node if name in node.input]
        return readers[0] if len(readers) == 1 and readers[0].op_type == op_type and self.alone(name) else None

    def constant(self, name: str) -> np.ndarray | None:
        stored = initializer(self.graph, name)
        if stored is not None:
            return numpy_helper.to_array(stored)
        node = self.of.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return numpy_helper.to_array(node.attribute[0].t)
        return None


def _scale_initializer(graph: onnx.ModelProto, name: str, scale: float) -> None:
    value = stored_array(graph, name) * np.float32(scale)
    graph.graph.initializer.remove(initializer(graph, name))
    add_initializer(graph, name, value)


def _permutation(transpose: onnx.NodeProto) -> list[int]:
    return [size for attribute in transpose.attribute if attribute.name == "perm" for size in attribute.ints]

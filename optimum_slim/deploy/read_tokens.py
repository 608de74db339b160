"""The tokens of the last layer that are read: a classifier reads one, generation the last. What leads to the others
alone is not computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from optimum_slim.deploy.glue import observed
from optimum_slim.deploy.graph import add_constant, drop_dead_nodes, drop_unused, replace_input, replace_node
from optimum_slim.deploy.wiring import Wiring, attribute_of

TOKENS = 1  # the axis of tokens in hidden states [batch, tokens, width]

Axes = dict[int, int]  # by the place of an input: its axis of tokens


def compute_read_tokens(graph: onnx.ModelProto) -> int:
    """Moves the choice of tokens from the end of the last layer to where tokens meet, in place: keys and values are
    computed of all tokens; queries, and what follows attention, of those that are read. Returns how many nodes now
    compute fewer tokens. Shapes must be written down (`freeze_shapes`).

    Answers stay the same, as every node here treats each token by itself.
    """
    wiring = Wiring(graph)
    reads = [node for node in graph.graph.node if _chooses_tokens(wiring, node)]
    if not reads:
        return 0
    shapes = _Shapes(graph)
    return sum(_narrow(graph, shapes, read) for read in reads)


def _chooses_tokens(wiring: Wiring, node: onnx.NodeProto) -> bool:
    """Whether a node chooses tokens of a value that are known before: a Gather one, a Slice some."""
    if node.op_type == "Gather":
        index = wiring.constant(node.input[1])
        return attribute_of(node, "axis", 0) == TOKENS and index is not None and index.ndim == 0
    if node.op_type == "Slice" and len(node.input) == 4 and node.output[0] not in wiring.outputs:
        start, end, axes = (wiring.constant(name) for name in node.input[1:])
        return start is not None and end is not None and axes is not None and axes.tolist() == [TOKENS]
    return False


class _Shapes:
    """The shapes of all values, in several runs with other texts."""

    def __init__(self, graph: onnx.ModelProto):
        self.stored = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
        names = {name: f"shape of {name}" for node in graph.graph.node for name in node.output if name}
        count = len(graph.graph.node)
        graph.graph.node.extend(helper.make_node("Shape", [name], [told]) for name, told in names.items())
        try:
            seen = observed(graph, list(names.values()))
        finally:
            del graph.graph.node[count:]
        self.seen = {name: [tuple(run[told].tolist()) for run in seen] for name, told in names.items()}
        self.runs = len(seen)

    def of(self, name: str) -> list[tuple[int, ...]] | None:
        """The shape in each run; None of an input of the graph."""
        return [self.stored[name]] * self.runs if name in self.stored else self.seen.get(name)

    def rank(self, name: str) -> int:
        shapes = self.of(name)
        return len(shapes[0]) if shapes else 0

    def aligned(self, name: str, axis: int, like: str) -> int | None:
        """The axis of a value that numpy's broadcasting lays on an axis of another; -1 where it has one size for all,
        None where that is not known."""
        own, whole = self.of(name), self.of(like)
        if own is None or whole is None:
            return None
        at = axis - (len(whole[0]) - len(own[0]))
        if at < 0 or all(shape[at] == 1 for shape in own):
            return -1
        return at if all(a[at] == b[axis] for a, b in zip(own, whole, strict=True)) else None


def _narrow(graph: onnx.ModelProto, shapes: _Shapes, read: onnx.NodeProto) -> int:
    wiring = Wiring(graph)
    inside = _inside(graph, wiring, shapes, read)
    if not any(node.op_type in ("MatMul", "Gemm") and node.input[1] in wiring.stored for node, _ in inside):
        return 0
    made = {node.output[0] for node, _ in inside}
    chosen: dict[tuple[str, int], str] = {}
    slices: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []
    bounds = _bounds(graph, wiring, read)
    for node, axes in inside:
        for place, axis in axes.items():
            value = node.input[place]
            if value in made:
                continue
            if (value, axis) not in chosen:
                name = chosen[value, axis] = f"{value}.read_{axis}"
                add_constant(graph, f"{name}.axis", np.array([axis]))
                slices.append((node, helper.make_node("Slice", [value, *bounds, f"{name}.axis"], [name], name=name)))
            node.input[place] = chosen[value, axis]
    for node, choice in slices:
        replace_node(graph, node, choice, node)
    if read.op_type == "Gather":
        first = f"{read.output[0]}.first"
        add_constant(graph, first, np.array(0))
        read.input[1] = first
    else:
        graph.graph.node.remove(read)
        replace_input(graph, read.output[0], read.input[0])
    drop_dead_nodes(graph)
    drop_unused(graph)
    return len(inside)


def _bounds(graph: onnx.ModelProto, wiring: Wiring, read: onnx.NodeProto) -> list[str]:
    """The names of the first token that a node chooses and of the one behind the last, written down for a Gather."""
    if read.op_type == "Slice":
        return list(read.input[1:3])
    index = wiring.constant(read.input[1])
    assert index is not None  # `_chooses_tokens`
    names = [f"{read.output[0]}.{bound}" for bound in ("start", "end")]
    for name, at in zip(names, (index, index + 1 if index != -1 else np.iinfo(np.int64).max), strict=True):
        add_constant(graph, name, np.array([at]))
    return names


def _inside(
    graph: onnx.ModelProto, wiring: Wiring, shapes: _Shapes, read: onnx.NodeProto
) -> list[tuple[onnx.NodeProto, Axes]]:
    """The nodes whose results lead to the read tokens alone, in the order of the graph, each with the axes of tokens of
    its inputs."""
    axes_of: dict[str, Axes] = {}  # by the output of a node inside
    wanted = {read.input[0]: {TOKENS}}
    inside = list[tuple[onnx.NodeProto, Axes]]()
    for node in reversed(graph.graph.node):
        name = node.output[0] if node.output else ""
        axis, *others = wanted.get(name, ()) or (None,)
        if axis is None or others or name in wiring.outputs or node.op_type not in _RULES:
            continue
        if not all(
            reader is read or axes_of.get(reader.output[0], {}).keys() >= _places(reader, name)
            for reader in wiring.readers[name]
        ):
            continue
        axes = _RULES[node.op_type](node, axis, shapes, wiring)
        if axes is None:
            continue
        axes_of[name] = axes
        inside.append((node, axes))
        for place, axis in axes.items():
            wanted.setdefault(node.input[place], set()).add(axis)
    return inside[::-1]


def _places(node: onnx.NodeProto, name: str) -> set[int]:
    return {place for place, one in enumerate(node.input) if one == name}


# Each rule takes a node and the axis of tokens in what it makes, and gives the axes of its inputs, or None where the
# node does not treat each token by itself.


def _pointwise(node: onnx.NodeProto, axis: int, shapes: _Shapes, wiring: Wiring) -> Axes | None:
    return _among(node, range(len(node.input)), axis, shapes)


def _among(node: onnx.NodeProto, places: Sequence[int], axis: int, shapes: _Shapes) -> Axes | None:
    """The axes of inputs that are laid on the output as numpy does."""
    found = {place: shapes.aligned(node.input[place], axis, node.output[0]) for place in places}
    if any(at is None for at in found.values()):
        return None
    return {place: at for place, at in found.items() if at is not None and at >= 0}


def _along_the_last(node: onnx.NodeProto, axis: int, shapes: _Shapes, wiring: Wiring) -> Axes | None:
    """Norms and Softmax, over the last axis."""
    last = shapes.rank(node.output[0]) - 1
    return {0: axis} if axis < last and attribute_of(node, "axis", -1) in (-1, last) and len(node.output) == 1 else None


def _mean(node: onnx.NodeProto, axis: int, shapes: _Shapes, wiring: Wiring) -> Axes | None:
    last = shapes.rank(node.output[0]) - 1
    over = wiring.constant(node.input[1]) if len(node.input) > 1 else np.array(attribute_of(node, "axes", []))
    whole = over is not None and over.tolist() in ([-1], [last]) and attribute_of(node, "keepdims", 1) == 1
    return {0: axis} if axis < last and whole else None


def _product(node: onnx.NodeProto, axis: int, shapes: _Shapes, wiring: Wiring) -> Axes | None:
    rank = shapes.rank(node.output[0])
    return {0: axis} if axis == rank - 2 and shapes.rank(node.input[0]) == rank else None


def _transpose(node: onnx.NodeProto, axis: int, shapes: _Shapes, wiring: Wiring) -> Axes | None:
    perm = attribute_of(node, "perm", None)
    return {0: perm[axis]} if perm else None


def _reshape(node: onnx.NodeProto, axis: int, shapes: _Shapes, wiring: Wiring) -> Axes | None:
    sizes, before, after = wiring.constant(node.input[1]), shapes.of(node.input[0]), shapes.of(node.output[0])
    if sizes is None or before is None or after is None or sizes[axis] not in (0, -1):
        return None
    same = all(a[: axis + 1] == b[: axis + 1] for a, b in zip(before, after, strict=True))
    return {0: axis} if same else None


def _rotary(node: onnx.NodeProto, axis: int, shapes: _Shapes, wiring: Wiring) -> Axes | None:
    whole = len(node.input) == 3 and shapes.rank(node.output[0]) == 3
    return _among(node, range(3), axis, shapes) if axis == TOKENS and whole else None


def _attention(node: onnx.NodeProto, axis: int, shapes: _Shapes, wiring: Wiring) -> Axes | None:
    """Attention as `fuse_cached_attention` makes it: a mask tells each query what it sees."""
    mask = shapes.of(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    answers = shapes.of(node.output[0])
    if axis != TOKENS or mask is None or answers is None or len(mask[0]) != 4 or len(answers[0]) != 3:
        return None
    if attribute_of(node, "is_causal", 0) or any(a[2] != b[TOKENS] for a, b in zip(mask, answers, strict=True)):
        return None
    return {0: TOKENS, 3: 2}


_Rule = Callable[[onnx.NodeProto, int, _Shapes, Wiring], Axes | None]
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Where", "Cast"), _pointwise),
    **dict.fromkeys(("Sqrt", "Reciprocal", "Neg", "Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "IsNaN"), _pointwise),
    **dict.fromkeys(("Softmax", "LayerNormalization", "RMSNormalization"), _along_the_last),
    "ReduceMean": _mean,
    "MatMul": _product,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary,
    "Attention": _attention,
}

"""Shape arithmetic of an exported graph that always ends in the same numbers: written down instead of computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from optimum_slim.deploy.benchmark import feeds, with_cache
from optimum_slim.deploy.graph import add_constant, drop_dead_nodes, drop_unused
from optimum_slim.deploy.memory import opened, thinned
from optimum_slim.deploy.wiring import Wiring

# (phase, batch, tokens): what differs between these runs depends on the texts, and stays.
RUNS = (("prefill", 1, 5), ("prefill", 2, 11), ("decode", 3, 7))
LARGEST = 64  # values of a result worth writing down

Values = Mapping[str, np.ndarray]


def freeze_shapes(graph: onnx.ModelProto) -> int:
    """Replaces what is computed from nothing but shapes by constants, in place, where it is the same at any batch and
    length, and shapes that a Reshape only copies by 0, which means that; returns how many nodes went.

    Exporters trace `x.view(batch, tokens, heads, -1)` into a dozen nodes for each view, which ONNX Runtime computes
    anew for every text.
    """
    before = len(graph.graph.node)
    shapely, makers = _from_shapes(graph), Wiring(graph).makers
    wanted = sorted(shapely & _read_by_others(graph, shapely))
    reshapes = [node for node in graph.graph.node if node.op_type == "Reshape" and node.input[1] in shapely]
    seen = observed(graph, [*wanted, *(name for node in reshapes for name in (node.input[0], node.output[0]))])
    for name in wanted:
        values = [run[name] for run in seen]
        if values[0].size <= LARGEST and all(np.array_equal(values[0], other) for other in values[1:]):
            _write_down(graph, makers[name], name, values[0])
            shapely.discard(name)
    for node in reshapes:
        if node.input[1] in shapely:
            _copy_sizes(graph, node, seen)
    drop_dead_nodes(graph)
    drop_unused(graph)
    return before - len(graph.graph.node)


def observed(graph: onnx.ModelProto, names: Sequence[str]) -> list[Values]:
    """The values of some names in each of `RUNS`, with other weights: those that depend on sizes alone are right. Of a
    graph without cache in the runs that it knows."""
    found: list[Values] = []
    with opened(thinned(graph), names) as session:
        cached = any(value.name.startswith("past_key_values") for value in session.get_inputs())
        for phase, batch, tokens in RUNS:
            inputs = feeds(session, phase if cached else "prefill", batch, tokens)
            if cached and phase == "decode":
                inputs = with_cache(session, inputs, batch, tokens)
            found.append(dict(zip(names, session.run(list(names), inputs), strict=True)))
    return found


def _from_shapes(graph: onnx.ModelProto) -> set[str]:
    """Values that depend on the sizes of tensors at most, never on what is in them."""
    stored = {tensor.name for tensor in graph.graph.initializer}
    stored |= {node.output[0] for node in graph.graph.node if node.op_type == "Constant"}
    known: set[str] = set()
    for node in graph.graph.node:
        read = {name for name in node.input if name} - stored
        if node.op_type == "Shape" or (read and read <= known):
            known.update(node.output)
    return known


def _read_by_others(graph: onnx.ModelProto, shapely: set[str]) -> set[str]:
    """What nodes read whose own results are not from shapes alone: the ends of the arithmetic."""
    return {name for node in graph.graph.node if not set(node.output) <= shapely for name in node.input}


def _write_down(graph: onnx.ModelProto, maker: onnx.NodeProto, name: str, value: np.ndarray) -> None:
    maker.output[list(maker.output).index(name)] = f"{name}.computed"
    add_constant(graph, name, value)


def _copy_sizes(graph: onnx.ModelProto, node: onnx.NodeProto, seen: Sequence[Values]) -> None:
    """Writes the target of a Reshape as constants, where each size is a constant, a copy, or the one that is left."""
    targets = [run[node.output[0]].shape for run in seen]
    shapes = [run[node.input[0]].shape for run in seen]
    sizes = []
    for axis, first in enumerate(targets[0]):
        values = [target[axis] for target in targets]
        if all(axis < len(shape) and value == shape[axis] for value, shape in zip(values, shapes, strict=True)):
            sizes.append(0)
        elif len(set(values)) == 1:
            sizes.append(first)
        else:
            sizes.append(-1)
    if sizes.count(-1) <= 1:
        name = f"{node.output[0]}.sizes"
        add_constant(graph, name, np.array(sizes, np.int64))
        node.input[1] = name
        kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("allowzero", 0)])

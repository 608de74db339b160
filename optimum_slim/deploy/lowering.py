"""From the linears of an fp32 ONNX graph to SlimLinear nodes: 8-bit weights with a scale per output, activations with a
scale per row, sparse where the recipe made them so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx

from optimum_slim.deploy.graph import (
    add_functions,
    add_initializer,
    drop_dead_nodes,
    drop_unused,
    float_embeddings,
    fold_transposed_weights,
    opset_of,
    read_integers,
    replace_node,
    stored_array,
    tied_heads,
)
from optimum_slim.deploy.integers import OnGrid, rows_of, signed_integers
from optimum_slim.deploy.linears import Linear, linears_in
from optimum_slim.deploy.names import nodes_of, told_of, weight_of
from optimum_slim.errors import ModelError
from optimum_slim.kernels.function import DOMAIN, slim_functions, slim_node
from optimum_slim.kernels.packing import MIDDLE, pack
from optimum_slim.kernels.pattern import pattern_named

# The root mean square of an output's integers is at most this where its inputs share one scale. Then nearly all sums of
# four products fit in 16 bits, which makes many rows a tenth faster on CPUs without VNNI; rounding still costs 1 % of a
# weight. A model's last linear meets few rows, and its answers are the model's: it keeps all of the 8 bits.
SPREAD = 32

SMALLEST = 1024  # weights; a classifier's few rows are not worth a node of another kind


def lower(
    graph: onnx.ModelProto,
    patterns: Mapping[str, str],
    group_size: int | None = None,
    grids: Mapping[str, OnGrid] | None = None,
    high: Collection[str] = (),
) -> list[str]:
    """Makes every linear of at least `SMALLEST` weights a SlimLinear, in place.

    Args:
        graph: an fp32 export with ONNX opset 18 or later.
        patterns: pattern by torch weight, e.g. {"bert.encoder.layer.0.output.dense.weight": "4x1"}; others are dense.
        group_size: inputs that share a scale, of weights and of activations; default: all. Linears whose inputs it does
            not divide have one scale.
        grids: of weights that stand on one, by torch name; their integers are kept.
        high: torch weights that stay as they are.

    Returns:
        The names of the new nodes.

    Raises:
        ModelError: the zeros of a weight do not fit its pattern, or a weight is not on its grid.
    """
    fold_transposed_weights(graph)
    tied = tied_heads(graph)
    left = {name for node in nodes_of(graph, high) for name in node.input[:2]}
    answers = {value.name for value in graph.graph.output}
    used, made, over_edge = set(), list[str](), False
    for linear in list(linears_in(graph)):
        weight = rows_of(graph, linear)
        if weight.size < SMALLEST or weight_of(linear.nodes[0], high) is not None:
            continue
        pattern = told_of(linear.nodes[0], patterns) or "dense"
        grouped = group_size if group_size and weight.shape[1] % group_size == 0 else None
        spread = np.inf if grouped or linear.output in answers else SPREAD
        integers, scale = signed_integers(linear.name, weight, told_of(linear.nodes[0], grids or {}), grouped, spread)
        node = _slim_linear(graph, linear, integers, scale, pattern, grouped)
        if linear.weight in tied and tied[linear.weight] not in left:
            groups = weight.shape[1] // (grouped or weight.shape[1])
            for gather in float_embeddings(graph)[tied[linear.weight]]:
                read_integers(graph, gather, node.input[2], node.input[3], MIDDLE, groups)
        block = pattern_named(pattern)
        over_edge |= bool(weight.shape[0] % block.outputs or weight.shape[1] % block.inputs)
        used.add(node.op_type)
        made.append(node.name)
    drop_dead_nodes(graph)
    drop_unused(graph)
    if made:
        add_functions(graph, slim_functions(used, opset_of(graph), over_edge))
    return made


def uses_kernels(path: Path) -> bool:
    """Whether an ONNX file has SlimLinear nodes, which our kernels make faster."""
    return any(node.domain == DOMAIN for node in onnx.load(path, load_external_data=False).graph.node)


def _slim_linear(
    graph: onnx.ModelProto,
    linear: Linear,
    integers: np.ndarray,
    scale: np.ndarray,
    pattern: str,
    group_size: int | None,
) -> onnx.NodeProto:
    outputs, inputs = integers.shape
    try:
        gaps, values = pack(integers, pattern)
    except ValueError as error:
        raise ModelError(f"{linear.name}: {error}") from error
    bias = stored_array(graph, linear.bias) if linear.bias else np.zeros(outputs, np.float32)
    names = [f"{linear.name}.{part}" for part in ("gaps", "values", "scale", "bias")]
    for name, value in zip(names, (gaps, values, scale, bias), strict=True):
        add_initializer(graph, name, value)
    node = slim_node(
        [linear.x, *names], linear.output, inputs, outputs, pattern, linear.activation, group_size, linear.name
    )
    replace_node(graph, linear.nodes[0], node)
    for old in linear.nodes[1:]:
        graph.graph.node.remove(old)
    return node

"""From the linears of an fp32 ONNX graph to SlimLinear nodes: 8-bit weights with a scale per output, activations with a
scale per row, sparse where the recipe made them so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from optimum_slim.deploy.graph import (
    add_constant,
    add_functions,
    add_initializer,
    drop_dead_nodes,
    drop_unused,
    float_embeddings,
    fold_transposed_weights,
    opset_of,
    quantized_rows,
    replace_node,
    stored_array,
    tied_heads,
)
from optimum_slim.deploy.linears import Linear, linears_in
from optimum_slim.deploy.names import module_path
from optimum_slim.errors import ModelError
from optimum_slim.kernels.function import DOMAIN, slim_functions, slim_node
from optimum_slim.kernels.packing import pack
from optimum_slim.kernels.pattern import pattern_named

SMALLEST = 1024  # weights; a classifier's few rows are not worth a node of another kind


def lower(graph: onnx.ModelProto, patterns: Mapping[str, str], group_size: int | None = None) -> list[str]:
    """Makes every linear of at least `SMALLEST` weights a SlimLinear, in place.

    Args:
        graph: an fp32 export with ONNX opset 18 or later.
        patterns: pattern by torch weight, e.g. {"bert.encoder.layer.0.output.dense.weight": "4x1"}; others are dense.
        group_size: inputs that share a scale, of weights and of activations; default: all. Linears whose inputs it does
            not divide have one scale.

    Returns:
        The names of the new nodes.

    Raises:
        ModelError: the zeros of a weight do not fit its pattern.
    """
    fold_transposed_weights(graph)
    tied = tied_heads(graph)
    used, made = set(), []
    for linear in list(linears_in(graph)):
        weight = stored_array(graph, linear.weight)
        weight = np.ascontiguousarray(weight.T if linear.transposed else weight)
        if weight.size < SMALLEST:
            continue
        path = module_path(linear.nodes[0])
        pattern = next((pattern for name, pattern in patterns.items() if name.endswith(f"{path}.weight")), "dense")
        grouped = group_size if group_size and weight.shape[1] % group_size == 0 else None
        node = _slim_linear(graph, linear, weight, pattern, grouped)
        if linear.weight in tied:
            _read_rows(graph, tied[linear.weight], node, weight.shape, grouped)
        used.add(node.op_type)
        made.append(node.name)
    drop_dead_nodes(graph)
    drop_unused(graph)
    if made:
        add_functions(graph, slim_functions(used, opset_of(graph)))
    return made


def uses_kernels(path: Path) -> bool:
    """Whether an ONNX file has SlimLinear nodes, which our kernels make faster."""
    return any(node.domain == DOMAIN for node in onnx.load(path, load_external_data=False).graph.node)


def _slim_linear(
    graph: onnx.ModelProto, linear: Linear, weight: np.ndarray, pattern: str, group_size: int | None
) -> onnx.NodeProto:
    outputs, inputs = weight.shape
    integers, scale = quantized_rows(weight, group_size)
    try:
        mask, values = pack(integers, pattern)
    except ValueError as error:
        raise ModelError(f"{linear.name}: {error}") from error
    bias = stored_array(graph, linear.bias) if linear.bias else np.zeros(outputs, np.float32)
    names = [f"{linear.name}.{part}" for part in ("mask", "values", "scale", "bias")]
    for name, value in zip(names, (mask, values, scale, bias), strict=True):
        add_initializer(graph, name, value)
    op_type = f"SlimLinear{'Grouped' if group_size else ''}{linear.activation}"
    node = slim_node(op_type, [linear.x, *names], linear.output, inputs, outputs, pattern, group_size, linear.name)
    replace_node(graph, linear.nodes[0], node)
    for old in linear.nodes[1:]:
        graph.graph.node.remove(old)
    return node


def _read_rows(
    graph: onnx.ModelProto, embedding: str, head: onnx.NodeProto, shape: tuple[int, int], group_size: int | None
) -> None:
    """Lets an embedding read the integers of the head that has the same weight, which ONNX Runtime lays out row by row
    when it loads."""
    tokens, width = shape
    block = pattern_named("dense")
    rows, columns = -(-tokens // block.outputs), -(-width // block.inputs)
    groups = width // group_size if group_size else 1
    sizes = {
        "blocks": [rows, columns, block.outputs, block.inputs],
        "table": [rows * block.outputs, columns * block.inputs],
        "groups": [0, 0, groups, -1],
        "scales": [0, 0, groups, 1],
        "row": [0, 0, -1],
        "start": [0],
        "end": [width],
        "axis": [-1],
    }

    def node(op_type: str, *inputs: str, output: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
        told = [f"{embedding}.sizes.{one[1:]}" if one.startswith("#") else one for one in inputs]
        return helper.make_node(op_type, told, [output], name=name, **attributes)

    table = f"{embedding}.rows"
    unfold = (
        node("Reshape", head.input[2], "#blocks", output=f"{table}.blocks"),
        node("Transpose", f"{table}.blocks", output=f"{table}.lines", perm=[0, 2, 1, 3]),
        node("Reshape", f"{table}.lines", "#table", output=table),
    )
    for at, one in enumerate(unfold):
        graph.graph.node.insert(at, one)
    for key, size in sizes.items():  # in front of the nodes that read them, as ONNX has it
        add_constant(graph, f"{embedding}.sizes.{key}", np.array(size, np.int64))
    for gather in float_embeddings(graph)[embedding]:
        ids, output, name = gather.input[1], gather.output[0], gather.name
        replace_node(
            graph,
            gather,
            node("Gather", table, ids, output=f"{output}.whole", name=f"{name}.rows"),
            node("Slice", f"{output}.whole", "#start", "#end", "#axis", output=f"{output}.ints", name=f"{name}.end"),
            node("Cast", f"{output}.ints", output=f"{output}.float", to=onnx.TensorProto.FLOAT),
            node("Reshape", f"{output}.float", "#groups", output=f"{output}.groups"),
            node("Gather", head.input[3], ids, output=f"{output}.scale", name=f"{name}.scales"),
            node("Reshape", f"{output}.scale", "#scales", output=f"{output}.scales"),
            node("Mul", f"{output}.groups", f"{output}.scales", output=f"{output}.scaled"),
            node("Reshape", f"{output}.scaled", "#row", output=output, name=f"{name}.row"),
        )

"""Linears whose weights stand in blocks of inputs with a scale each (MatMulNBits, or SlimMatMulNBits, which our kernels
run), and embeddings that read the blocks of their head (GatherBlockQuantized)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper

from optimum_slim.deploy.graph import (
    add_functions,
    add_initializer,
    drop_unused,
    float_embeddings,
    initializer,
    inlined,
    opset_of,
    replace_node,
    stored_array,
)
from optimum_slim.deploy.integers import OnGrid, grouped_integers, rows_of
from optimum_slim.deploy.linears import linears_in
from optimum_slim.deploy.names import told_of
from optimum_slim.deploy.wiring import attribute_of
from optimum_slim.errors import ModelError
from optimum_slim.kernels.blocked import (
    ROUNDED,
    SIZES,
    STOCK,
    STOCK_DOMAIN,
    blocked_function,
    blocked_node,
    is_blocked,
    packed,
    stock_node,
)
from optimum_slim.kernels.joined import BLOCKED_LINEARS, parted
from optimum_slim.progress import logs_silenced

# 4: activations are rounded to 8 bits, a scale for each row and block. 1: they stay floats.
AccuracyLevel = Literal[1, 4]

BLOCK_BITS = {"int8-weights": 8, "int4-weights": 4}  # of weights that no grid tells of, by precision
WEIGHT_BLOCK = 32  # inputs that share a scale, where no grid tells
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256  # that ONNX Runtime has; blocks are powers of two


def block_of(group_size: int | None) -> int:
    """The inputs of a block, for a grid with so many in a group: a group may be several blocks with one scale.

    Raises:
        ModelError: there is no such block.
    """
    if group_size is None:
        return WEIGHT_BLOCK
    block = min(group_size & -group_size, LARGEST_BLOCK)
    if block < SMALLEST_BLOCK:
        raise ModelError(f"groups of {group_size} inputs cannot be stored in blocks: multiples of {SMALLEST_BLOCK} can")
    return block


def block_bytes(weights: int, told: Mapping[str, Any]) -> int:
    """Bytes of a weight in blocks, its scales included, roughly.

    Args:
        weights: how many there are. told: its `bits`, and its `group_size` where it stands on a grid.
    """
    return weights * (4 if told["bits"] <= 4 else 8) // 8 + 4 * weights // block_of(told.get("group_size"))


def write_blocks(graph: onnx.ModelProto, bits: int, grids: Mapping[str, OnGrid], high: Collection[str]) -> None:
    """Writes linears as products with weights in blocks, in place: with the integers of the grid that a weight stands
    on, in 4 bits those of up to 4, else in 8; others are rounded here, by ONNX Runtime.

    Args:
        graph: whose linears are MatMuls. bits: of weights without a grid. grids: by torch name. high: names of products
        that stay floats.

    Raises:
        ModelError: a weight is not what its grid says, or its groups cannot be stored.
    """
    for linear in list(linears_in(graph)):
        node = linear.nodes[0]
        if node.name in high:
            continue
        known = told_of(node, grids)
        width = bits if known is None else 4 if known.grid.bits <= 4 else 8
        names = [f"{linear.weight}_Q{width}", f"{linear.weight}_scales", f"{linear.weight}_zero_points"]
        weight = stored_array(graph, linear.weight)
        if known is None:
            block, tensors = WEIGHT_BLOCK, _rounded(weight, width)
        else:
            block, rows = block_of(known.grid.group_size), rows_of(graph, linear)
            tensors = block_tensors(*grouped_integers(linear.name, rows, known), known.grid.group_size, width)
        if initializer(graph, names[0]) is None:  # layers may share it
            for name, value in zip(names, tensors, strict=False):
                add_initializer(graph, name, value)
        sizes = {"K": weight.shape[0], "N": weight.shape[1], "bits": width, "block_size": block}
        inputs = [node.input[0], *names[: len(tensors)]]
        replace_node(graph, node, stock_node(inputs, node.output[0], f"{node.name}_Q{width}", **sizes))
    if STOCK_DOMAIN not in {one.domain for one in graph.opset_import}:
        graph.opset_import.append(helper.make_opsetid(STOCK_DOMAIN, 1))
    drop_unused(graph)


def _rounded(weight: np.ndarray, bits: int) -> tuple[np.ndarray, ...]:
    """A weight [K, N] in blocks of `WEIGHT_BLOCK`: integers, and scales float32 [N, blocks]."""
    with logs_silenced():  # on import it asks for all that any library tells
        from onnxruntime.quantization import matmul_nbits_quantizer as stock

    config = stock.DefaultWeightOnlyQuantConfig(WEIGHT_BLOCK, is_symmetric=True, bits=bits)
    integers, scales, _ = stock.DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight)
    return integers, scales


def block_tensors(
    integers: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, group_size: int | None, bits: int
) -> tuple[np.ndarray, ...]:
    """The tensors of a weight as MatMulNBits reads them; blocks beyond the last input are filled up with zeros.

    Args:
        integers: uint8 [N, K] within 0..2^bits - 1. scale: float32 [N, groups]. zero_point: uint8 [N, groups].
        group_size: inputs of a group; None: all K. bits: 4 or 8.

    Returns:
        uint8 [N, blocks, block * bits / 8], two integers a byte where they have 4 bits, the first one low; scales
        float32 [N * blocks]; and unless they all are the middle, zero points uint8 [N, bytes], packed likewise.
    """
    outputs, inputs = integers.shape
    block = block_of(group_size)
    blocks = -(-inputs // block)
    of_block = np.minimum(np.arange(blocks) * block // (group_size or inputs), scale.shape[1] - 1)
    zero_points = zero_point[:, of_block]
    filled = np.repeat(zero_points, block, 1)
    filled[:, :inputs] = integers
    tensors = (packed(filled, bits).reshape(outputs, blocks, -1), scale[:, of_block].astype(np.float32).flatten())
    if (zero_points == 2 ** (bits - 1)).all():
        return tensors
    return (*tensors, packed(zero_points, bits))


def share_blocks(graph: onnx.ModelProto, tied: Mapping[str, str]) -> None:
    """Lets an embedding read the blocks of the head that has the same weight, in place. Without it the weight would
    stand in the file twice.

    Args:
        tied: the embedding's name by the name of the head's weight, before it stood in blocks.
    """
    for node in [one for one in graph.graph.node if one.op_type == STOCK]:
        head, _, ending = node.input[1].rpartition("_Q")
        gathers = float_embeddings(graph).get(tied.get(head, "")) if ending else None
        if not gathers:
            continue
        name, bits, block = tied[head], attribute_of(node, "bits", 4), attribute_of(node, "block_size", 0)
        vocabulary, hidden = stored_array(graph, name).shape
        if hidden % block:
            continue
        rows = f"{node.input[1]}.rows"
        add_initializer(graph, f"{name}.sizes", np.array([vocabulary, hidden * bits // 8], dtype=np.int64))
        graph.graph.node.insert(0, helper.make_node("Reshape", [node.input[1], f"{name}.sizes"], [rows]))
        for gather in gathers:
            reading = helper.make_node(
                "GatherBlockQuantized",
                [rows, gather.input[1], *node.input[2:4]],
                [gather.output[0]],
                name=f"{gather.name}.blocks",
                domain=STOCK_DOMAIN,
                bits=bits,
                block_size=block,
                gather_axis=0,
                quantize_axis=1,
            )
            replace_node(graph, gather, reading)
        shaped = stored_array(graph, node.input[2]).reshape(vocabulary, hidden // block)
        graph.graph.initializer.remove(initializer(graph, node.input[2]))
        add_initializer(graph, node.input[2], shaped)
        drop_unused(graph)


def set_level(graph: onnx.ModelProto, level: int) -> None:
    """Rounds the activations of products in blocks, or leaves them floats, in place. Those that are rounded run by our
    kernels where we have one.

    Args:
        level: an `AccuracyLevel`.
    """
    ours = False
    _write_as_stock(graph)
    for node in [one for one in graph.graph.node if one.op_type == STOCK]:
        sizes = {name: attribute_of(node, name, 0) for name in SIZES}
        if level == ROUNDED and is_blocked(len(node.input), **sizes):
            made, ours = blocked_node(node.input, node.output[0], node.name, **sizes), True
        else:
            made = stock_node(node.input, node.output[0], node.name, accuracy_level=level, **sizes)
        replace_node(graph, node, made)
    if ours:
        add_functions(graph, [blocked_function(opset=opset_of(graph))])


def _write_as_stock(graph: onnx.ModelProto) -> None:
    """Writes the functions of our products with weights in blocks where these stand, in place."""
    functions = {one.name: one for one in graph.functions if one.name in BLOCKED_LINEARS}
    for node in [one for one in graph.graph.node if one.op_type in functions]:
        nodes, names = inlined(node, functions[node.op_type]), [one.name for one in parted(node)]
        for one, name in zip((one for one in nodes if one.op_type == STOCK), names, strict=True):
            one.name = name
        replace_node(graph, node, *nodes)
    for function in functions.values():
        graph.functions.remove(function)

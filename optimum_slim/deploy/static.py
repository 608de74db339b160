"""Static int8 linears: integers and ranges are fixed in the file, so nothing is searched for while it runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper

from optimum_slim.deploy.calibration import Range
from optimum_slim.deploy.graph import (
    add_initializer,
    drop_unused,
    initializer,
    replace_node,
    stored_array,
)
from optimum_slim.deploy.integers import OnGrid, rows_of, stock_integers
from optimum_slim.deploy.linears import Linear, linears_in
from optimum_slim.deploy.lowering import SMALLEST
from optimum_slim.deploy.names import told_of
from optimum_slim.model.rounding import affine_scale


def static_linears(graph: onnx.ModelProto) -> list[Linear]:
    """The linears that become static: all with at least `SMALLEST` weights."""
    return [one for one in linears_in(graph) if stored_array(graph, one.weight).size >= SMALLEST]


def uncalibrated(linears: Collection[Linear], grids: Mapping[str, OnGrid]) -> list[str]:
    """The values that enter linears whose grid, by the torch weight's name, tells no range of them."""
    known = {one.name: told_of(one.nodes[0], grids) for one in linears}
    lacking = [one.x for one in linears if (its := known[one.name]) is None or its.grid.input_scale is None]
    return list(dict.fromkeys(lacking))


def quantize_linears(
    graph: onnx.ModelProto, linears: Collection[Linear], grids: Mapping[str, OnGrid], ranges: Mapping[str, Range]
) -> None:
    """Writes linears as products of what QuantizeLinear and DequantizeLinear give (QDQ), in place: weights with a scale
    per output, what enters with one scale for the whole tensor (arXiv:1712.05877, section 2). ONNX Runtime multiplies
    the integers (MatMulIntegerToFloat).

    Args:
        linears: of this graph. grids: by the torch weight's name; other weights are rounded here.
        ranges: of what enters linears that no grid tells of.

    Raises:
        ModelError: a weight is not on its grid.
        KeyError: neither a grid nor `ranges` tells of what enters a linear.
    """
    entering: dict[tuple[str, float, int], str] = {}
    for linear in linears:
        product, path = linear.nodes[0], linear.name.rpartition("/")[0]
        known = told_of(product, grids)
        input_scale, input_zero_point = _input_grid(linear, known, ranges)
        key, nodes = (linear.x, input_scale, input_zero_point), list[onnx.NodeProto]()
        if key not in entering:  # linears that read one value by one scale share it
            x = entering[key] = f"{linear.x}.{len(entering)}"
            parts = [f"{x}.{part}" for part in ("scale", "zero_point")]
            add_initializer(graph, parts[0], np.array(input_scale, np.float32))
            add_initializer(graph, parts[1], np.array(input_zero_point, np.uint8))
            nodes.append(_node("QuantizeLinear", [linear.x, *parts], f"{x}.integers", path))
            nodes.append(_node("DequantizeLinear", [f"{x}.integers", *parts], x, path))
        weight = _stored_integers(graph, linear, known)
        floats = f"{linear.name}.weight"
        nodes.append(_node("DequantizeLinear", weight, floats, f"{path}/weight", axis=1))
        bias = product.input[2] if product.op_type == "Gemm" and len(product.input) > 2 else ""
        output = f"{product.output[0]}.product" if bias else product.output[0]
        nodes.append(helper.make_node("MatMul", [entering[key], floats], [output], name=linear.name))
        if bias:
            # Not Add: ONNX Runtime would make a float Gemm of the two.
            nodes.append(_node("Sum", [output, bias], product.output[0], path))
        replace_node(graph, product, *nodes)
    drop_unused(graph)


def _node(op_type: str, inputs: list[str], output: str, path: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"{path}/{op_type}", **attributes)


def _stored_integers(graph: onnx.ModelProto, linear: Linear, known: OnGrid | None) -> list[str]:
    """Stores a linear's weight as integers [inputs, outputs], scale and zero point, in place, and returns their names:
    those that `quantize_dynamic` gives, by which an embedding of the same weight finds them."""
    names = [f"{linear.weight}_{part}" for part in ("quantized", "scale", "zero_point")]
    if initializer(graph, names[0]) is None:  # two linears may read one weight
        made = stock_integers(linear.name, rows_of(graph, linear), known)
        for name, value in zip(names, made, strict=True):
            add_initializer(graph, name, value)
    return names


def _input_grid(linear: Linear, known: OnGrid | None, ranges: Mapping[str, Range]) -> tuple[float, int]:
    grid = known.grid if known is not None else None
    if grid is not None and grid.input_scale is not None and grid.input_zero_point is not None:
        return float(grid.input_scale), int(grid.input_zero_point)
    low, high = ranges[linear.x]
    scale, zero_point = affine_scale(torch.tensor(low), torch.tensor(high))
    return float(scale), int(zero_point)

"""From a weight of an ONNX graph to the integers that are stored: those of its grid, where quantization gave it one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import PreTrainedModel

from optimum_slim.deploy.graph import quantized_rows, stored_array
from optimum_slim.deploy.linears import Linear
from optimum_slim.deploy.saturation import overflowing_pairs
from optimum_slim.errors import ModelError
from optimum_slim.kernels.packing import MIDDLE, turned
from optimum_slim.model.grids import Grid, grids_of
from optimum_slim.model.streamed import in_parts


@dataclass(frozen=True)
class OnGrid:
    """A torch weight that stands on a grid."""

    grid: Grid
    integers: np.ndarray  # uint8 [outputs, inputs]


def weights_on_grids(model: PreTrainedModel) -> dict[str, OnGrid]:
    """The weights of a model that stand on a grid, by the parameter's name.

    Raises:
        ModelError: one was changed after it was quantized.
    """
    grids, found = grids_of(model), {}
    for _ in in_parts(model):
        for name in [name for name in grids if not model.get_parameter(name).is_meta]:
            found[name] = OnGrid(grids[name], grids[name].integers(name, model.get_parameter(name)).numpy())
    return found


def rows_of(graph: onnx.ModelProto, linear: Linear) -> np.ndarray:
    """The stored weight of a linear, [outputs, inputs]."""
    weight = stored_array(graph, linear.weight)
    return np.ascontiguousarray(weight.T if linear.transposed else weight)


def weight_integers(name: str, weight: np.ndarray, known: OnGrid | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The integers of a weight: those of its grid, or `symmetric_integers`.

    Args:
        name: for the error. weight: float32 [outputs, inputs], as the graph holds it: a factor that was folded into it
        goes into the scales.

    Returns:
        uint8 [outputs, inputs], scale float32 [outputs], zero point uint8 [outputs].

    Raises:
        ModelError: the weight is not what its grid says, or the grid has several scales for an output.
    """
    if known is None:
        integers, scale = symmetric_integers(weight)
        return turned(integers), scale[:, 0], np.full(len(weight), MIDDLE, np.uint8)
    if known.grid.scale.shape[1] > 1:
        raise ModelError(f"{name}: a weight of {known.grid.scale.shape[1]} scales an output cannot be stored with one")
    integers, scale, zero_point = grouped_integers(name, weight, known)
    return integers, scale[:, 0], zero_point[:, 0]


def grouped_integers(name: str, weight: np.ndarray, known: OnGrid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of a grid with any number of scales an output.

    Returns:
        uint8 [outputs, inputs], scale float32 [outputs, groups], zero point uint8 [outputs, groups].

    Raises:
        ModelError: the weight is not what its grid says.
    """
    floats = known.grid.floats(torch.from_numpy(known.integers)).numpy()
    factor = np.float32(1)
    if not np.array_equal(floats, weight) and floats.shape == weight.shape:
        largest = np.abs(floats).argmax()
        factor = weight.flat[largest] / floats.flat[largest]
    if floats.shape != weight.shape or not np.allclose(floats * factor, weight, rtol=1e-6, atol=0):
        raise ModelError(f"{name}: the weight in the ONNX graph is not on the grid that quantization put it on")
    return known.integers, known.grid.scale.numpy() * factor, known.grid.zero_point.numpy()


def symmetric_integers(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers for stock products: at scales at which no sum overflows, unless the weight stands on a grid already.

    Args:
        weight: float32 [outputs, inputs].

    Returns:
        int8 [outputs, inputs], -127 to 127, and scales float32 [outputs, 1].
    """
    integers, scale = quantized_rows(weight)
    if np.allclose(integers * scale, weight, rtol=1e-6, atol=0):
        return integers, scale
    return quantized_rows(weight, paired=True)


def stock_integers(name: str, weight: np.ndarray, known: OnGrid | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The integers of `weight_integers` as ONNX Runtime multiplies them exactly on every CPU: int8 around 0, or uint8
    where that is not the grid's middle or sums can overflow.

    Without VNNI it adds pairs of products of uint8 by int8 on x86 in 16 bits. Those of uint8 by uint8 are exact, but
    since 2026 leave VNNI and AMX unused: three times as slow there.

    Returns:
        [inputs, outputs], scale float32 [outputs], zero point [outputs].
    """
    integers, scale, zero_point = weight_integers(name, weight, known)
    signed = turned(integers).view(np.int8)
    if (zero_point == MIDDLE).all() and not overflowing_pairs(signed.T):
        integers, zero_point = signed, np.zeros_like(zero_point, np.int8)
    return np.ascontiguousarray(integers.T), scale, zero_point


def exact_weights(graph: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Stores the weights that `quantize_dynamic` made as `stock_integers`, in place.

    Args:
        before: the graph with floats.
    """
    products = {node.input[1]: node for node in graph.graph.node if node.op_type == "MatMulInteger"}
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    for quantized, node in products.items():
        name = quantized.removesuffix("_quantized")
        rows = np.ascontiguousarray(stored_array(before, name).T)
        integers, scale, zero_point = stock_integers(name, rows, None)
        made = {quantized: integers, f"{name}_scale": scale, node.input[3]: zero_point[:1].reshape(())}
        for part, value in made.items():
            stored[part].CopyFrom(numpy_helper.from_array(value, part))


def signed_integers(
    name: str, weight: np.ndarray, known: OnGrid | None, group_size: int | None = None, spread: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """The same as integers from -127 to 127 around 0.

    Args:
        name, weight, known: as above. group_size: inputs that share a scale; default: all.
        spread: as in `quantized_rows`; a grid's integers are kept.

    Returns:
        int8 [outputs, inputs], and scales float32 [outputs, groups].

    Raises:
        ModelError: as above, or zero is not in the grid's middle.
    """
    if known is None:
        return quantized_rows(weight, group_size, spread)
    integers, scale, zero_point = weight_integers(name, weight, known)
    centred = integers.astype(np.int16) - zero_point[:, None]
    if np.abs(centred).max() > 127:
        raise ModelError(f"{name}: its grid is not symmetric, as 8-bit integers around 0 are")
    return centred.astype(np.int8), np.repeat(scale[:, None], weight.shape[1] // (group_size or weight.shape[1]), 1)

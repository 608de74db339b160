"""An int8 weight to and from the mask and values that FORMAT.md describes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optimum_slim.kernels.pattern import Pattern, pattern_named

Int8 = NDArray[np.int8]
UInt8 = NDArray[np.uint8]


def pack(weight: Int8, pattern: str) -> tuple[UInt8, Int8]:
    """Mask (a bit for each block, lowest first) and values of the kept blocks of a weight [outputs N, inputs K].

    A block is kept when any of its values is not 0; `dense` keeps all. Raises ValueError for another type or rank, an
    unknown pattern, or more than 2 weights other than 0 in a group of four under 2:4.
    """
    if weight.dtype != np.int8 or weight.ndim != 2:
        raise ValueError(f"the weight must be int8 of two dimensions, not {weight.dtype} of shape {weight.shape}")
    shape = pattern_named(pattern)
    if pattern == "2:4":
        _check_two_of_four(weight)
    blocks = _blocks_of(weight, shape)
    kept = np.ones(len(blocks), bool) if pattern == "dense" else blocks.any(axis=1)
    return np.packbits(kept, bitorder="little"), np.ascontiguousarray(blocks[kept]).reshape(-1)


def unpack(mask: UInt8, values: Int8, n: int, k: int, pattern: str) -> Int8:
    """The weight [n, k] again. Raises ValueError where mask or values do not have the length that belongs to it."""
    shape = pattern_named(pattern)
    rows, columns = _grid(n, k, shape)
    size, count = shape.outputs * shape.inputs, rows * columns
    if mask.shape != ((count + 7) // 8,):
        raise ValueError(f"the mask must have the shape [{(count + 7) // 8}], not {list(mask.shape)}")
    kept = np.unpackbits(mask, count=count, bitorder="little").astype(bool)
    if values.shape != (int(kept.sum()) * size,):
        raise ValueError(f"the values must have the shape [{int(kept.sum()) * size}], not {list(values.shape)}")
    blocks = np.zeros((count, size), np.int8)
    blocks[kept] = values.reshape(-1, size)
    grid = blocks.reshape(rows, columns, shape.outputs, shape.inputs).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(grid.reshape(rows * shape.outputs, columns * shape.inputs)[:n, :k])


def _grid(n: int, k: int, shape: Pattern) -> tuple[int, int]:
    return -(-n // shape.outputs), -(-k // shape.inputs)


def _blocks_of(weight: Int8, shape: Pattern) -> Int8:
    """[block, its values], zeros where blocks reach over the edge."""
    n, k = weight.shape
    rows, columns = _grid(n, k, shape)
    if (rows * shape.outputs, columns * shape.inputs) != (n, k):
        weight = np.pad(weight, ((0, rows * shape.outputs - n), (0, columns * shape.inputs - k)))
    grid = weight.reshape(rows, shape.outputs, columns, shape.inputs).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(grid).reshape(rows * columns, shape.outputs * shape.inputs)


def _check_two_of_four(weight: Int8) -> None:
    n, k = weight.shape
    kept = np.pad(weight != 0, ((0, 0), (0, -k % 4))).reshape(n, -1, 4).sum(axis=2)
    if (kept > 2).any():
        row, group = np.argwhere(kept > 2)[0]
        raise ValueError(
            f"2:4 keeps at most 2 of 4 neighbouring weights, but output {row} has {kept[row, group]} "
            f"from input {4 * group}"
        )

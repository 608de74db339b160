"""An int8 weight to and from the gaps and values that FORMAT.md describes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimum_slim.kernels.pattern import Pattern, pattern_named

Int8 = NDArray[np.int8]
UInt8 = NDArray[np.uint8]

MIDDLE = 128  # the uint8 that stands for 0
LONGEST_OF_BLOCKS = 255  # a byte
LONGEST_OF_SINGLES = 15  # half a byte


def pack(weight: Int8, pattern: str) -> tuple[UInt8, UInt8]:
    """Gaps between the kept blocks, and their values, of a weight [outputs N, inputs K].

    A block is kept when any of its values is not 0; `dense` keeps all and has no gaps. Raises ValueError for another
    type or rank, an unknown pattern, or more than 2 weights other than 0 in a group of four under 2:4.
    """
    if weight.dtype != np.int8 or weight.ndim != 2:
        raise ValueError(f"the weight must be int8 of two dimensions, not {weight.dtype} of shape {weight.shape}")
    shape = pattern_named(pattern)
    if pattern == "2:4":
        _check_two_of_four(weight)
    if shape.kind == "":
        return np.zeros(0, np.uint8), turned(weight)
    if shape.kind == "Singles":
        gaps, values = _with_fillers(weight.T.reshape(-1, 1, 1), LONGEST_OF_SINGLES)
        pairs = np.pad(gaps, (0, len(gaps) % 2)).reshape(-1, 2)
        return pairs[:, 0] | pairs[:, 1] * np.uint8(16), values.reshape(-1)
    return _with_fillers(_blocks_of(weight, shape), LONGEST_OF_BLOCKS)


def unpack(gaps: UInt8, values: UInt8, n: int, k: int, pattern: str) -> Int8:
    """The weight [n, k] again. Raises ValueError where gaps or values do not have the shape that belongs to it, or lead
    beyond the weight."""
    shape = pattern_named(pattern)
    rows, columns = _grid(n, k, shape)
    if shape.kind == "":
        _check_shape("gaps", gaps, (0,))
        _check_shape("values", values, (n, k))
        return turned(values).view(np.int8)
    if shape.kind == "Singles":
        _check_shape("gaps", gaps, ((len(values) + 1) // 2,))
        _check_shape("values", values, (len(values),))
        gaps = np.stack([gaps & 15, gaps >> 4], axis=1).reshape(-1)[: len(values)]
    else:
        _check_shape("gaps", gaps, (len(values),))
        _check_shape("values", values, (len(values), shape.outputs, shape.inputs))
    places = np.cumsum(gaps, dtype=np.int64)
    if len(places) and places[-1] >= rows * columns:
        raise ValueError(f"the gaps lead to block {places[-1]}, but there are {rows * columns}")
    blocks = np.zeros((rows * columns, shape.outputs, shape.inputs), np.int8)
    blocks[places] = turned(values).view(np.int8).reshape(-1, shape.outputs, shape.inputs)
    if shape.kind == "Singles":
        return np.ascontiguousarray(blocks.reshape(k, n).T)
    grid = blocks.reshape(rows, columns, shape.outputs, shape.inputs).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(grid.reshape(rows * shape.outputs, columns * shape.inputs)[:n, :k])


def _with_fillers(blocks: Int8, longest: int) -> tuple[UInt8, UInt8]:
    """Gaps and values of [block, outputs, inputs]; blocks of zeros stand where a gap, to the end too, is too long."""
    places = np.append(np.flatnonzero(blocks.any(axis=(1, 2))), len(blocks))
    gaps = np.diff(places, prepend=0)
    fillers = np.maximum(gaps - 1, 0) // longest
    at = (np.cumsum(fillers + 1) - 1)[:-1]  # where the blocks come that are not fillers
    total = len(at) + int(fillers.sum())
    all_gaps = np.full(total, longest, np.uint8)
    all_gaps[at] = (gaps - longest * fillers)[:-1]
    values = np.zeros((total, *blocks.shape[1:]), np.int8)
    values[at] = blocks[places[:-1]]
    return all_gaps, turned(values)


def turned(values: NDArray[Any]) -> UInt8:
    """int8 to the uint8 that is `MIDDLE` more, or such uint8 to the bits of int8: the highest bit is turned over."""
    return np.ascontiguousarray(values).view(np.uint8) ^ np.uint8(MIDDLE)


def _grid(n: int, k: int, shape: Pattern) -> tuple[int, int]:
    return -(-n // shape.outputs), -(-k // shape.inputs)


def _blocks_of(weight: Int8, shape: Pattern) -> Int8:
    """[block, output, input], zeros where blocks reach over the edge."""
    n, k = weight.shape
    rows, columns = _grid(n, k, shape)
    if (rows * shape.outputs, columns * shape.inputs) != (n, k):
        weight = np.pad(weight, ((0, rows * shape.outputs - n), (0, columns * shape.inputs - k)))
    grid = weight.reshape(rows, shape.outputs, columns, shape.inputs).transpose(0, 2, 1, 3)
    return grid.reshape(rows * columns, shape.outputs, shape.inputs)


def _check_shape(name: str, array: UInt8, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"the {name} must have the shape {list(shape)}, not {list(array.shape)}")


def _check_two_of_four(weight: Int8) -> None:
    n, k = weight.shape
    kept = np.pad(weight != 0, ((0, 0), (0, -k % 4))).reshape(n, -1, 4).sum(axis=2)
    if (kept > 2).any():
        row, group = np.argwhere(kept > 2)[0]
        raise ValueError(
            f"2:4 keeps at most 2 of 4 neighbouring weights, but output {row} has {kept[row, group]} "
            f"from input {4 * group}"
        )

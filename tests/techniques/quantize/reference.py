"""The published algorithms once more, as plain and slow as can be, in float64: what ours are checked against."""

from __future__ import annotations

import numpy as np
from torch import Tensor

ROOM = 1.01  # of GPTQ's symmetric scales: the largest weight lies just between two integers, and a last bit decides


def grid_of_range(weight: np.ndarray, bits: int, symmetric: bool, room: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each row, as GPTQ's code finds them."""
    top = 2**bits - 1
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    if symmetric:
        high = np.maximum(np.abs(low), high)
        low = -high
    empty = (low == 0) & (high == 0)
    low, high = np.where(empty, -1, low), np.where(empty, 1, high)
    scale = (high - low) / top
    return scale * room, np.full(len(scale), (top + 1) / 2) if symmetric else np.round(-low / scale)


def gptq_weight(
    weight: Tensor, hessian: Tensor, bits: int, group_size: int | None, symmetric: bool, ordered: bool, block: int
) -> np.ndarray:
    """Each column in turn is rounded, and the inverse Hessian of the columns after it tells what these take over
    (arXiv:2210.17323, eq. 2 and 3): Gauss eliminates the column from it. Scales see nothing of a block's own columns.
    """
    left, curvature = weight.double().numpy().copy(), hessian.double().numpy().copy()
    inputs, top = left.shape[1], 2**bits - 1
    size = group_size or inputs
    grids = {}
    if ordered:
        for at in range(-(-inputs // size)):
            grids[at] = grid_of_range(left[:, at * size : (at + 1) * size], bits, symmetric, ROOM)
        order = list(np.argsort(-np.diag(curvature), kind="stable"))
    else:
        order = list(range(inputs))
    inverse = np.linalg.inv(curvature + 0.01 * np.diag(curvature).mean() * np.eye(inputs))
    found, seen = np.zeros_like(left), left.copy()
    for turn, column in enumerate(order):
        if turn % block == 0:
            seen = left.copy()
        group = column // size
        if group not in grids:
            grids[group] = grid_of_range(seen[:, column : column + size], bits, symmetric, ROOM)
        scale, zero_point = grids[group]
        integers = np.clip(np.round(left[:, column] / scale) + zero_point, 0, top)
        found[:, column] = (integers - zero_point) * scale
        after = order[turn + 1 :]
        share = (left[:, column] - found[:, column]) / inverse[column, column]
        left[:, after] -= np.outer(share, inverse[column, after])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return found


def awq_search(weight: np.ndarray, data: np.ndarray, bits: int, group_size: int) -> np.ndarray:
    """The scales of AWQ's search for one linear: of those tried, the ones whose outputs on the data are closest; affine
    grids, as its code has them by default."""
    weight, data = weight.astype(np.float64), data.astype(np.float64)
    sizes, wanted, found = np.abs(data).mean(0), data @ weight.T, []
    for step in range(20):
        scales = np.maximum(sizes ** (step / 20), 1e-4)
        scales = scales / np.sqrt(scales.max() * scales.min())
        parts = (weight * scales).reshape(-1, group_size)
        step_size, zero = (one[:, None] for one in grid_of_range(parts, bits, False))
        rounded = (np.clip(np.round(parts / step_size) + zero, 0, 2**bits - 1) - zero) * step_size
        output = (data / scales) @ rounded.reshape(weight.shape).T
        found.append((np.square(output - wanted).mean(), step, scales))
    return min(found)[2]

"""The published algorithms once more, as plain and slow as can be: what the techniques' numbers are checked against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCKS = {"unstructured": (1, 1), "2:4": (1, 1), "4x1": (4, 1), "4x2": (4, 2), "4x4": (4, 4)}  # inputs, outputs


def layer(outputs: int, inputs: int, rows: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [outputs, inputs], and correlated inputs [rows, inputs] of sizes between 1 and 1/30."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    sizes = torch.logspace(0, -1.5, inputs)[torch.randperm(inputs, generator=generator)]
    data = torch.randn(rows, inputs, generator=generator) @ mix * sizes
    return torch.randn(outputs, inputs, generator=generator), data


def summed(scores: np.ndarray, pattern: str) -> dict[tuple[int, int], float]:
    """The score of each block, by the place of its first weight."""
    inputs, outputs = BLOCKS[pattern]
    rows, columns = scores.shape
    return {
        (row, column): float(scores[row : row + outputs, column : column + inputs].sum(dtype=np.float64))
        for row in range(0, rows, outputs)
        for column in range(0, columns, inputs)
    }


def masked(shape: tuple[int, int], places: list[tuple[int, int]], pattern: str) -> np.ndarray:
    """True in the blocks at these places."""
    inputs, outputs = BLOCKS[pattern]
    gone = np.zeros(shape, bool)
    for row, column in places:
        gone[row : row + outputs, column : column + inputs] = True
    return gone


def two_lowest_of_four(scores: np.ndarray) -> np.ndarray:
    """In each four neighbours of a row the lowest leave, until two are left."""
    gone = np.zeros(scores.shape, bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], 4):
            order = start + np.argsort(scores[row, start : start + 4], kind="stable")
            gone[row, order[: max(0, len(order) - 2)]] = True
    return gone


def wanda_mask(weight: np.ndarray, data: np.ndarray, ratio: float, pattern: str) -> np.ndarray:
    scores = np.abs(weight) * np.sqrt((data**2).sum(0))
    if pattern == "2:4":
        return two_lowest_of_four(scores)
    blocks, leaving = summed(scores, pattern), []
    for row in sorted({row for row, _ in blocks}):
        ordered = sorted((place for place in blocks if place[0] == row), key=blocks.__getitem__)
        leaving += ordered[: int(len(ordered) * ratio)]
    return masked(weight.shape, leaving, pattern)


def magnitude_mask(weight: np.ndarray, ratio: float, pattern: str) -> np.ndarray:
    if pattern == "2:4":
        return two_lowest_of_four(np.abs(weight))
    blocks = summed(np.abs(weight), pattern)
    return masked(weight.shape, sorted(blocks, key=blocks.__getitem__)[: int(len(blocks) * ratio)], pattern)


def sparsegpt_weight(
    weight: np.ndarray, hessian: np.ndarray, ratio: float, pattern: str, size: int, damp: float
) -> np.ndarray:
    """In float64 and without Cholesky factors: a weight's saliency is w^2 / (H^-1)_jj, where H is that of the columns
    from it on, and the columns after it make up for it by solving for them."""
    weight, hessian = weight.astype(np.float64), hessian.astype(np.float64)
    rows, columns = weight.shape
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian += np.eye(columns) * damp * hessian.diagonal().mean()
    inverse = np.array([np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(columns)])
    gone = np.zeros(weight.shape, bool)
    for column in range(columns):
        start = column // size * size
        if pattern == "2:4" and (column - start) % 4 == 0:
            four = slice(column, min(column + 4, start + size, columns))
            gone[:, four] = two_lowest_of_four(weight[:, four] ** 2 / inverse[four])
        elif pattern != "2:4" and column == start:
            part = slice(start, min(start + size, columns))
            blocks = summed(weight[:, part] ** 2 / inverse[part], pattern)
            threshold = sorted(blocks.values())[int(len(blocks) * ratio)]
            leaving = [place for place, score in blocks.items() if score <= threshold]
            gone[:, part] = masked((rows, part.stop - start), leaving, pattern)
        lost = np.where(gone[:, column], weight[:, column], 0)
        weight[:, column] -= lost
        if column + 1 < columns:
            after = slice(column + 1, None)
            weight[:, after] += np.outer(lost, np.linalg.solve(hessian[after, after], hessian[after, column]))
    return weight

"""Zero weights column by column, and let the columns to their right make up for each that leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.data.stream import blocks_in_turn, products
from optimum_slim.model.hessian import inverse_root
from optimum_slim.model.matrices import matrix
from optimum_slim.techniques.sparsify.allocation import allocated
from optimum_slim.techniques.sparsify.masks import block_sums, lowest_two_of_four, spread
from optimum_slim.techniques.sparsify.scores import dense_scores
from optimum_slim.techniques.sparsify.settings import Sparsify


@dataclass(frozen=True)
class SparsifySparseGPT(Sparsify):
    """Blocks become zero where w^2 over the squared diagonal of the inverse Hessian's root is smallest in sum, and the
    weights after them are solved anew (SparseGPT, arXiv:2301.00774). Blocks of the model are pruned in turn, each with
    what the pruned ones before it send. Allocations other than uniform go by Wanda's scores.

    - sparsify.sparsegpt: {ratio: 0.5, pattern: 4x1}
    """

    streams: ClassVar[bool] = True

    def apply(self, model: PreTrainedModel, calibration_data: Batches) -> None:
        if not self.ratio:
            return
        names = self.targeted(model)
        scores = dense_scores(model, names, calibration_data)
        shares = allocated(self.allocation, self.ratio, self.pattern, names, scores)
        for _, moments in blocks_in_turn(model, names, calibration_data, products):
            for name, moment in moments.items():
                weight = matrix(model, name)
                weight.copy_(sparsegpt(weight, moment, shares[name], self.pattern))
        self.note(model)


def sparsegpt(
    weight: Tensor, hessian: Tensor, ratio: float, pattern: str, block_size: int = 128, damp: float = 0.01
) -> Tensor:
    """A sparse weight that comes close to the layer's old outputs (SparseGPT, arXiv:2301.00774, algorithm 1; numbers as
    in its published code).

    Args:
        weight: W, [N, K]. hessian: of the layer's squared error, a multiple of X^T X, [K, K]. The published code takes
        2 X^T X / texts; the scale does not matter, as damping is relative, except that an input that is always 0
        counts as 1 in the mean.
        ratio: the share of blocks that leave each `block_size` columns, up to and with the block at that place in their
        order; 0 changes nothing, 2:4 knows none. pattern: as in `PATTERNS`. block_size: columns among which blocks are
        compared, a multiple of 4. damp: share of the mean diagonal that is added to the diagonal.

    Returns:
        float32 [N, K].

    Raises:
        ValueError: block_size is no multiple of 4. torch.linalg.LinAlgError: the hessian is not that of any inputs.
    """
    if block_size % 4:
        raise ValueError(f"block_size must be a multiple of 4, not {block_size}")
    new = weight.float().clone()
    if not ratio:
        return new
    root = inverse_root(new, hessian.float().clone(), damp)
    for start in range(0, new.shape[1], block_size):
        columns = slice(start, min(start + block_size, new.shape[1]))
        part, errors = _sparse_columns(new[:, columns], root[columns, columns], ratio, pattern)
        new[:, columns] = part
        new[:, columns.stop :] -= errors @ root[columns, columns.stop :]
    return new


def _sparse_columns(weight: Tensor, root: Tensor, ratio: float, pattern: str) -> tuple[Tensor, Tensor]:
    """Zeros in some columns [N, C], whose root is [C, C]: what they become, and the errors that later columns are to
    make up for, both [N, C]."""
    left, part, errors = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    scale = root.diagonal()
    gone = _lowest_of_all(left.square() / scale.square(), ratio, pattern)
    for column in range(weight.shape[1]):
        if pattern == "2:4" and column % 4 == 0:
            four = slice(column, column + 4)  # chosen only now, from what the columns before made of them
            gone[:, four] = lowest_two_of_four(left[:, four].square() / scale[four].square())
        part[:, column] = left[:, column].masked_fill(gone[:, column], 0)
        errors[:, column] = (left[:, column] - part[:, column]) / scale[column]
        left[:, column:] -= errors[:, column, None] @ root[None, column, column:]
    return part, errors


def _lowest_of_all(scores: Tensor, ratio: float, pattern: str) -> Tensor:
    """bool [N, C]: the blocks whose scores are at most that of the block at `ratio` of all."""
    sums = block_sums(scores, pattern)
    threshold = sums.flatten().sort().values[int(sums.numel() * ratio)]
    return spread(sums <= threshold, pattern, *scores.shape)

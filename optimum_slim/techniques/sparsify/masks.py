"""Which weights leave: blocks of a pattern, by their summed saliency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optimum_slim.kernels.pattern import pattern_named


def block_sums(scores: Tensor, pattern: str) -> Tensor:
    """The summed scores of each block of a pattern.

    Args:
        scores: [N, K]; blocks at the edge may be smaller. pattern: as in `PATTERNS`.

    Returns:
        [ceil(N / outputs), ceil(K / inputs)]; of 1x1 blocks the scores themselves.
    """
    block = pattern_named(pattern)
    rows, columns = scores.shape
    whole = nn.functional.pad(scores, (0, -columns % block.inputs, 0, -rows % block.outputs))
    return whole.unflatten(1, (-1, block.inputs)).unflatten(0, (-1, block.outputs)).sum((1, 3))


def spread(blocks: Tensor, pattern: str, rows: int, columns: int) -> Tensor:
    """What holds for blocks, for each weight of theirs: [rows, columns]."""
    block = pattern_named(pattern)
    whole = blocks.repeat_interleave(block.outputs, 0).repeat_interleave(block.inputs, 1)
    return whole[:rows, :columns]


def whole_blocks(mask: Tensor, pattern: str) -> Tensor:
    """What holds for all weights of a block: bool [N, K] to bool of the shape of `block_sums`."""
    return block_sums((~mask).float(), pattern) == 0


def lowest_two_of_four(scores: Tensor) -> Tensor:
    """The two lowest of each four neighbours in a row.

    Args:
        scores: [N, K]. In a last group of fewer than four, those that lack count as the lowest.

    Returns:
        bool [N, K].
    """
    columns = scores.shape[1]
    groups = nn.functional.pad(scores, (0, -columns % 4), value=-torch.inf).unflatten(1, (-1, 4))
    gone = torch.zeros_like(groups, dtype=torch.bool)
    gone.scatter_(2, groups.topk(2, dim=2, largest=False).indices, True)
    return gone.flatten(1)[:, :columns]


def lowest_in_rows(scores: Tensor, count: int) -> Tensor:
    """The `count` lowest of each row, of equal ones the first: bool of the shape of `scores`, [rows, columns]."""
    places = scores.sort(dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, True)


def lowest(scores: Tensor, ratio: float, pattern: str, by_row: bool) -> Tensor:
    """The weights whose blocks score lowest; of equal ones the first leave first.

    Args:
        scores: [N, K], at least 0. ratio: the share of blocks that leave, rounded down. pattern: as in `PATTERNS`; 2:4
        knows no ratio. by_row: blocks are compared within each row of blocks, else within the whole layer.

    Returns:
        bool [N, K].
    """
    if pattern == "2:4":
        return lowest_two_of_four(scores)
    sums = block_sums(scores, pattern)
    compared = sums if by_row else sums.reshape(1, -1)
    gone = lowest_in_rows(compared, int(compared.shape[1] * ratio))
    return spread(gone.view_as(sums), pattern, *scores.shape)

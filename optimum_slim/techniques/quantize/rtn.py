"""Round each weight to the nearest integer of its group."""

from __future__ import annotations

import torch
from torch import Tensor

from optimum_slim.model.rounding import range_grid, rounded, searched_grid


def rtn(
    weight: Tensor,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    *,
    searched: bool = False,
    moment: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Integers by scales of each group alone.

    Args:
        weight: float [N, K]. bits, group_size, symmetric: as for `gptq`. searched: scales may cut off the largest
        weights of a group where that leaves less error; else they span its range. moment: mean of x^T x, float [K, K],
        by which that is the error of outputs; default: of the weights.

    Returns:
        q uint8 [N, K], scale float32 and zero point uint8 [N, groups]; `(q - zero_point) * scale` is the weight.
    """
    inputs = weight.shape[1]
    size = group_size or inputs
    parts, scales, zeros = [], [], []
    for start in range(0, inputs, size):
        columns = slice(start, min(start + size, inputs))
        group = weight[:, columns].float()
        if searched:
            scale, zero = searched_grid(group, bits, symmetric, None if moment is None else moment[columns, columns])
        else:
            scale, zero = range_grid(group, bits, symmetric)
        parts.append(rounded(group, scale[:, None], zero[:, None], bits).to(torch.uint8))
        scales.append(scale)
        zeros.append(zero)
    return torch.cat(parts, 1), torch.stack(scales, 1), torch.stack(zeros, 1).to(torch.uint8)

"""Round each weight to the nearest integer of its group."""

from __future__ import annotations

import torch
from torch import Tensor

from optimum_slim.model.rounding import rounded, searched_grid


def rtn(
    weight: Tensor, bits: int, group_size: int | None, symmetric: bool, importance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Integers by scales that round each group with the least squared error.

    Args:
        weight: float [N, K]. bits, group_size, symmetric: as for `gptq`. importance: of the errors at each input,
        float [K]; default: all alike.

    Returns:
        q uint8 [N, K], scale float32 and zero point uint8 [N, groups]; `(q - zero_point) * scale` is the weight.
    """
    parts, scales, zeros = [], [], []
    for group in weight.float().split(group_size or weight.shape[1], 1):
        scale, zero_point = searched_grid(group, bits, symmetric)
        parts.append(rounded(group, scale[:, None], zero_point[:, None], bits).to(torch.uint8))
        scales.append(scale)
        zeros.append(zero_point)
    return torch.cat(parts, 1), torch.stack(scales, 1), torch.stack(zeros, 1).to(torch.uint8)

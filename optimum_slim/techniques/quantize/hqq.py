"""Round weights so that a few large errors are spared many small ones: no texts are needed."""

from __future__ import annotations

import torch
from torch import Tensor

from optimum_slim.model.rounding import range_grid, rounded

STEPS, NORM, BETA, GROWTH = 20, 0.7, 10.0, 1.01  # as in the published code
TINY = torch.finfo(torch.float32).tiny


def hqq(weight: Tensor, bits: int, group_size: int | None, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Half-quadratic quantization (Badri and Shaji 2023, mobiusml.github.io/hqq_blog, eq. 3 and 4): the sum of
    |error|^0.7 of each group is lowered in turns of shrinking the errors and solving for the zero point by what is
    left. Zero points are integers here, as MatMulNBits has them, and move seldom; so the scale is solved for as well.
    The best turn of each group counts, the grid of its range among them.

    Args:
        weight: float [N, K]. bits, group_size, symmetric: as for `gptq`.

    Returns:
        q uint8 [N, K], scale float32 and zero point uint8 [N, groups]; `(q - zero_point) * scale` is the weight.
    """
    found = [_group(group, bits, symmetric) for group in weight.float().split(group_size or weight.shape[1], 1)]
    integers, scales, zeros = zip(*found, strict=True)
    return torch.cat(integers, 1).to(torch.uint8), torch.cat(scales, 1), torch.cat(zeros, 1).to(torch.uint8)


def _group(weight: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Integers [N, group], scale and zero point [N, 1]."""
    scale, zero_point = (one[:, None] for one in range_grid(weight, bits, symmetric))
    best, least, beta = (scale, zero_point), torch.full_like(scale, torch.inf), BETA
    for _ in range(STEPS + 1):
        integers = rounded(weight, scale, zero_point, bits)
        off = weight - (integers - zero_point) * scale
        error = off.abs().pow(NORM).sum(1, keepdim=True)
        better = error < least
        best = torch.where(better, scale, best[0]), torch.where(better, zero_point, best[1])
        least = torch.where(better, error, least)
        kept = off.sign() * (off.abs() - off.abs().pow(NORM - 1) / beta).clamp(min=0)
        target = weight - kept
        if not symmetric:
            zero_point = (integers - target / scale).mean(1, keepdim=True).round().clamp(0, 2**bits - 1).int()
        centred = (integers - zero_point).float()
        length = centred.square().sum(1, keepdim=True)
        solved = (centred * target).sum(1, keepdim=True) / length
        scale = torch.where((length > 0) & (solved.abs() >= TINY), solved, scale)
        beta *= GROWTH
    scale, zero_point = best
    return rounded(weight, scale, zero_point, bits), scale, zero_point

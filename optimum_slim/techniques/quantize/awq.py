"""Give inputs that matter more of the integers: weights grow by what is taken from the norm or linear before them."""

from __future__ import annotations

import torch
from torch import Tensor

from optimum_slim.data.through import Statistic
from optimum_slim.model.grids import Grid
from optimum_slim.techniques.quantize.rtn import rtn

STEPS = 20  # exponents that are tried


# The mean of x^T x and below it that of |x|: [K + 1, K].
products_and_sizes = Statistic(lambda rows: torch.cat([rows.T @ rows, rows.abs().sum(0, keepdim=True)]))


def awq_scales(
    weight: Tensor, moment: Tensor, sizes: Tensor, bits: int, group_size: int | None, symmetric: bool
) -> Tensor:
    """What to multiply each input's weights by, and divide the input by, before they are rounded: sizes^alpha, with the
    alpha of 0, 1/20, .. 19/20 whose outputs are closest (AWQ, arXiv:2306.00978, eq. 4 and 5; scales normalized as in
    its published code).

    Args:
        weight: of all linears that read the input, one below the other, float [N, K]. moment: mean of x^T x, float
        [K, K]. sizes: mean of |x|, float [K]. bits, group_size, symmetric: as for `gptq`.

    Returns:
        float32 [K], above 0.
    """
    weight, sizes = weight.float(), sizes.float()
    best, least = torch.ones_like(sizes), float("inf")
    for step in range(STEPS):
        scales = sizes.pow(step / STEPS).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        q, scale, zero_point = rtn(weight * scales, bits, group_size, symmetric)
        off = Grid(scale, zero_point, bits, group_size).floats(q) / scales - weight
        error = float((off @ moment * off).sum())
        if error < least:
            best, least = scales, error
    return best

"""Round a weight column by column, and let the columns to the right make up for each error."""

from __future__ import annotations

import torch
from torch import Tensor

from optimum_slim.model.hessian import inverse_root
from optimum_slim.model.rounding import range_grid, rounded, searched_grid


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    *,
    ordered: bool = False,
    searched: bool = False,
    block_size: int = 128,
    damp: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """Integers that come close to the layer's old outputs (GPTQ, arXiv:2210.17323, algorithm 1; numbers as in its
    published code). The weight that they stand for is `(q - zero_point) * scale`.

    Args:
        weight: W, float [N, K]. hessian: of the layer's squared error, a multiple of X^T X, [K, K].
        bits: of an integer, 2 to 8. group_size: inputs that share a scale, the last of a row maybe fewer; None: all.
        symmetric: zero points are the middle, 2^(bits - 1).
        ordered: columns are rounded in falling order of their inputs' squares, with the scales of the weights before
        any is rounded ("act-order" with static groups). Else a group's scales are those of the weights as they stand
        when the block with its first column begins.
        searched: scales may cut off the largest weights of a group where that leaves less error in the outputs; else
        they span its range. block_size: columns that are rounded before the others hear of it. damp:
        share of the mean diagonal that is added to the diagonal.

    Returns:
        q uint8 [N, K] in 0..2^bits - 1; scale float32 and zero point uint8, both [N, groups].

    Raises:
        torch.linalg.LinAlgError: the hessian is not that of any inputs.
    """
    left, hessian = weight.float().clone(), hessian.float()
    outputs, inputs = left.shape
    size = group_size or inputs
    grids: dict[int, tuple[Tensor, Tensor]] = {}
    moment = hessian

    def grid_of(group: int) -> tuple[Tensor, Tensor]:
        columns = slice(group * size, min((group + 1) * size, inputs))
        if searched:
            return searched_grid(left[:, columns], bits, symmetric, moment[columns, columns])
        return range_grid(left[:, columns], bits, symmetric)

    order = torch.arange(inputs, device=left.device)
    if ordered:
        grids = {group: grid_of(group) for group in range(-(-inputs // size))}
        order = hessian.diagonal().argsort(descending=True)
        left, hessian = left[:, order], hessian[order][:, order]
    root = inverse_root(left, hessian.clone(), damp)
    q = torch.zeros(outputs, inputs, dtype=torch.uint8, device=left.device)
    places = order.tolist()
    for start in range(0, inputs, block_size):
        stop = min(start + block_size, inputs)
        part, errors = left[:, start:stop].clone(), left.new_zeros(outputs, stop - start)
        for at in range(start, stop):
            place, column = places[at], at - start
            group = place // size
            if group not in grids:
                grids[group] = grid_of(group)
            scale, zero_point = grids[group]
            whole = rounded(part[:, column], scale, zero_point, bits)
            q[:, place] = whole.to(torch.uint8)
            errors[:, column] = (part[:, column] - (whole - zero_point) * scale) / root[at, at]
            part[:, column:] -= errors[:, column, None] @ root[None, at, at:stop]
        left[:, stop:] -= errors @ root[start:stop, stop:]
    found = [grids[group] for group in sorted(grids)]
    return q, torch.stack([scale for scale, _ in found], 1), torch.stack([zero for _, zero in found], 1).to(torch.uint8)

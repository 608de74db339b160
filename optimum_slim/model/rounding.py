"""From floats to 8-bit integers and back: scales, zero points, and rounding (Jacob et al., arXiv:1712.05877, eq. 1)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LARGEST = 127  # of a signed weight: -128 is left out, so that zero is in the middle (section 3.1)
LEVELS = 255  # steps between the lowest and the highest 8-bit integer
SHARES = 16  # ranges that are tried of each group
SMALLEST_SHARE = 0.6  # of the range of its weights


def symmetric_scale(weight: Tensor) -> Tensor:
    """The scale of each output, by which its largest weight becomes 127; a row of zeros, or of numbers too small to
    have a scale, has scale 1.

    Args:
        weight: float [outputs, inputs].

    Returns:
        float32 [outputs, 1].
    """
    largest = weight.float().abs().amax(1, keepdim=True)
    return torch.where(largest / LARGEST >= torch.finfo(torch.float32).tiny, largest / LARGEST, 1.0)


def affine_scale(low: Tensor, high: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the integers 0 to 2^bits - 1 that span a range, which is widened to hold 0 and moved so
    that 0 is one of them (section 3, "nudged").

    Args:
        low, high: float32 of one shape.

    Returns:
        The scale, float32, and the zero point, int32 in 0..2^bits - 1, of that shape; a range of nothing has scale 1.
    """
    levels = 2**bits - 1
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    scale = (high - low) / levels
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, 1.0)
    return scale, (-low / scale).round().clamp(0, levels).int()


def rounded(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8) -> Tensor:
    """`round(values / scale) + zero_point`, halves to the even integer, kept within 0..2^bits - 1.

    Args:
        values: float. scale, zero_point: of a shape that spreads over that of the values.

    Returns:
        int32.
    """
    return ((values.float() / scale).round() + zero_point).clamp(0, 2**bits - 1).int()


def range_grid(weight: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The grid that spans all weights of each group, as the published code of GPTQ takes it.

    Args:
        weight: float [..., group]. symmetric: the zero point is the middle, 2^(bits - 1).

    Returns:
        The scale, float32, and the zero point, int32, both [...].
    """
    low, high = torch.aminmax(weight.float(), dim=-1)
    if not symmetric:
        return affine_scale(low, high, bits)
    high = torch.maximum(-low, high)
    scale, zero_point = affine_scale(-high, high, bits)
    return scale, torch.full_like(zero_point, 2 ** (bits - 1))


def searched_grid(weight: Tensor, bits: int, symmetric: bool, moment: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The grid that rounds each group with the least squared error, of those that cut off more and more of its largest
    weights. A symmetric one of few bits has an integer more on one side of zero: which side, the sign of its scale
    tells.

    Args:
        weight: float [..., group]. moment: mean of x^T x of the group's inputs, float [group, group], by which errors
        are those of outputs; default: of the weights.

    Returns:
        The scale, float32, and the zero point, int32, both [...].
    """
    weight = weight.float()
    best_scale, best_zero = range_grid(weight, bits, symmetric)
    least = torch.full_like(best_scale, torch.inf)
    for scale, zero_point in _candidates(weight, best_scale, best_zero, bits, symmetric):
        wide, zero = scale[..., None], zero_point[..., None].float()
        centred = (weight / wide).round_().clamp_(-zero, 2**bits - 1 - zero)  # as `rounded`, in floats: it is faster
        off = centred.mul_(wide).sub_(weight)
        error = (off * (off if moment is None else off @ moment)).sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero_point, best_zero)
    return best_scale, best_zero


def _candidates(
    weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int, symmetric: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The grid of the range, and smaller ones; a symmetric group's largest weight is at or beyond the last integer of
    the longer side."""
    yield scale, zero_point
    low, high = torch.aminmax(weight, dim=-1)
    largest = torch.maximum(-low, high)
    for share in torch.linspace(1, SMALLEST_SHARE, SHARES).tolist():
        if not symmetric:
            yield affine_scale(torch.maximum(low, -largest * share), torch.minimum(high, largest * share), bits)
        else:
            longer = scale * (share * (2**bits - 1) / 2**bits)
            yield longer, zero_point
            if bits < 8:
                yield -longer, zero_point

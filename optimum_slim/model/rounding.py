"""From floats to 8-bit integers and back: scales, zero points, and rounding (Jacob et al., arXiv:1712.05877, eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127  # of a signed weight: -128 is left out, so that zero is in the middle (section 3.1)
LEVELS = 255  # steps between the lowest and the highest 8-bit integer


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


def affine_scale(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the 8-bit integers 0 to 255 that span a range, which is widened to hold 0 and moved so
    that 0 is one of them (section 3, "nudged").

    Args:
        low, high: float32 of one shape.

    Returns:
        The scale, float32, and the zero point, int32 in 0..255, of that shape; a range of nothing has scale 1.
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    scale = (high - low) / LEVELS
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, 1.0)
    return scale, (-low / scale).round().clamp(0, LEVELS).int()


def rounded(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8) -> Tensor:
    """`round(values / scale) + zero_point`, halves to the even integer, kept within 0..2^bits - 1.

    Args:
        values: float. scale, zero_point: of a shape that spreads over that of the values.

    Returns:
        int32.
    """
    return ((values.float() / scale).round() + zero_point).clamp(0, 2**bits - 1).int()

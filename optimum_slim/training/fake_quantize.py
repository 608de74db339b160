"""Fake quantization: floats that are rounded as the deployed integers will be, while gradients pass through."""

from __future__ import annotations

import torch
from torch import Tensor

from optimum_slim.model.rounding import LARGEST, LEVELS, affine_scale, symmetric_scale


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Rounds to the grid of a uint8 tensor: `(clamp(round(x / scale) + zero_point, 0, 255) - zero_point) * scale`
    (arXiv:1712.05877, eq. 12). The gradient is that of x itself where it is within the grid, and 0 outside.

    Args:
        values: any shape and float type. scale: float32 []. zero_point: int32 [], 0 to 255.

    Returns:
        float32 of the shape of `values`.
    """
    return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero_point, 0, LEVELS)


def fake_quantize_weight(weight: Tensor, axis: int = 0) -> Tensor:
    """Rounds a weight to the symmetric grid of each of its outputs, -127 to 127, that holds all of it, so that all of
    the gradient passes (arXiv:1712.05877, section 3.1; a scale per output: arXiv:1806.08342, section 3.1.3).

    Args:
        weight: float, 2-D. axis: the dimension that counts outputs.

    Returns:
        float32 of the same shape. Zeros stay zero.
    """
    scale = symmetric_scale(weight.detach().movedim(axis, 0))[:, 0]
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero_point, axis, -LARGEST, LARGEST)


def moved_range(before: Tensor | None, seen: Tensor, smoothing: float) -> Tensor:
    """The moving average of the range of a tensor (arXiv:1712.05877, section 3.1), widened to hold 0; without one
    before it is what was seen.

    Args:
        before, seen: lowest and highest value, float32 [2]. smoothing: the share of the old range that stays, 0 to 1.
    """
    seen = torch.stack([seen[0].clamp(max=0), seen[1].clamp(min=0)])
    return seen if before is None else smoothing * before + (1 - smoothing) * seen


def grid_of_range(ends: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point, as `fake_quantize` takes them, of a range, float32 [2]."""
    return affine_scale(ends[0], ends[1])

"""Fake quantization rounds as the paper says, and gradients go straight through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimum_slim.model.rounding import affine_scale, rounded, symmetric_scale
from optimum_slim.training.fake_quantize import fake_quantize, fake_quantize_weight, grid_of_range, moved_range

VALUES = hnp.arrays("float32", st.integers(1, 40), elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)
ENDS = st.tuples(st.floats(-50, 50, width=32), st.floats(-50, 50, width=32)).map(sorted).map(torch.tensor)


def far_from_halves(values, scale):
    """Where a last bit of a division does not decide between two integers."""
    part = (values / scale).double() % 1
    return (part - 0.5).abs() > 1e-3


@given(VALUES, ENDS)
def test_values_become_what_their_integers_stand_for(values, ends):
    scale, zero_point = grid_of_range(ends)
    wanted = (rounded(values, scale, zero_point) - zero_point) * scale
    found = fake_quantize(values, scale, zero_point)
    assert torch.equal(found[far_from_halves(values, scale)], wanted[far_from_halves(values, scale)])
    assert ((found - wanted).abs() <= scale * 1.001).all()


@given(VALUES, ENDS)
def test_the_gradient_is_straight_through_within_the_range_and_0_outside(values, ends):
    scale, zero_point = grid_of_range(ends)
    values.requires_grad_(True)
    weights = torch.arange(1.0, len(values) + 1)
    (fake_quantize(values, scale, zero_point) * weights).sum().backward()
    integers = (values.detach() / scale).round() + zero_point  # the definition: d clamp(x) / dx, with round as identity
    wanted = torch.where((integers >= 0) & (integers <= 255), weights, 0.0)
    sure = far_from_halves(values.detach(), scale)
    assert torch.equal(values.grad[sure], wanted[sure])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_is_rounded_by_its_outputs_and_passes_every_gradient(axis):
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 6)[:, None]
    weight[2] = 0
    weight[:, 3] = 0
    scale = symmetric_scale(weight)
    wanted = (rounded(weight, scale, torch.tensor(128)) - 128) * scale
    kept = weight.T.contiguous() if axis else weight.clone()
    kept.requires_grad_(True)
    found = fake_quantize_weight(kept, axis)
    assert torch.allclose(found.movedim(axis, 0), wanted, rtol=1e-6, atol=0)
    assert ((found == 0) == (kept == 0)).movedim(axis, 0)[:, 3].all()
    found.sum().backward()
    assert torch.equal(kept.grad, torch.ones_like(kept))


def test_a_range_moves_as_in_the_paper_and_always_holds_zero():
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, generator=draw).sort().values + 0.5 for _ in range(20)]
    ends, lows, highs = None, [], []
    for seen in batches:
        ends = moved_range(ends, seen, 0.9)
        lows.append(min(float(seen[0]), 0.0))
        highs.append(max(float(seen[1]), 0.0))
        # The exponential moving average written out: old ones count 0.9 less each, and the first stands for all before.
        weights = np.array([0.9 ** (len(lows) - 1), *(0.1 * 0.9 ** (len(lows) - 1 - at) for at in range(1, len(lows)))])
        np.testing.assert_allclose(ends, [np.dot(weights, lows), np.dot(weights, highs)], rtol=1e-5, atol=1e-6)
        assert ends[0] <= 0 <= ends[1]


def test_the_grid_of_a_range_is_nudged_to_hold_zero():
    scale, zero_point = grid_of_range(torch.tensor([-1.0, 3.0]))
    assert (float(scale), int(zero_point)) == (pytest.approx(4 / 255), 64)
    assert torch.equal(scale, affine_scale(torch.tensor(-1.0), torch.tensor(3.0))[0])
    assert fake_quantize(torch.tensor([0.0, 9.0]), scale, zero_point).tolist() == [0.0, pytest.approx(191 * 4 / 255)]


def test_bf16_is_rounded_in_fp32():
    values = torch.linspace(-2, 2, 37).bfloat16()
    scale, zero_point = grid_of_range(torch.tensor([-2.0, 2.0]))
    found = fake_quantize(values, scale, zero_point)
    assert found.dtype == torch.float32
    assert torch.equal(found, fake_quantize(values.float(), scale, zero_point))

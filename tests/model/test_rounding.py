"""Integers and floats, back and forth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimum_slim.model.rounding import affine_scale, rounded, symmetric_scale

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
MATRICES = hnp.arrays("float32", hnp.array_shapes(min_dims=2, max_dims=2), elements=FLOATS).map(torch.from_numpy)


@given(MATRICES)
def test_the_largest_weight_of_an_output_becomes_127_and_none_is_off_by_more_than_half_a_step(weight):
    scale = symmetric_scale(weight)
    integers = rounded(weight, scale, torch.tensor(128)) - 128
    largest = weight.abs().amax(1)
    assert integers.abs().max() <= 127
    assert (integers.abs().amax(1)[largest > 1e-35] == 127).all()
    assert ((integers * scale - weight).abs() <= scale * 0.50001).all()
    assert (integers[weight == 0] == 0).all()


@given(MATRICES)
def test_what_was_rounded_is_rounded_to_the_same_integers_again(weight):
    scale = symmetric_scale(weight)
    integers = rounded(weight, scale, torch.tensor(128))
    assert torch.equal(rounded((integers - 128) * scale, scale, torch.tensor(128)), integers)


@given(FLOATS, FLOATS)
def test_an_affine_grid_spans_its_range_and_holds_zero(one, other):
    low, high = torch.tensor(min(one, other)), torch.tensor(max(one, other))
    scale, zero_point = affine_scale(low, high)
    assert scale > 0
    assert 0 <= zero_point <= 255
    ends = torch.tensor([0.0, 255.0]) - zero_point
    # Moved by at most half a step, so that 0 is an integer.
    assert ends[0] * scale <= low.clamp(max=0) + scale * 0.501
    assert ends[1] * scale >= high.clamp(min=0) - scale * 0.501
    assert rounded(torch.tensor(0.0), scale, zero_point) == zero_point


def test_a_range_of_nothing_has_a_scale():
    assert [float(one) for one in affine_scale(torch.tensor(0.0), torch.tensor(0.0))] == [1, 0]


@pytest.mark.parametrize(
    ("value", "integer"), [(-9.0, 0), (0.0, 3), (0.74, 4), (0.76, 5), (0.75, 5), (1.25, 5), (9.0, 15)]
)
def test_values_outside_of_four_bits_are_kept_at_its_ends(value, integer):
    assert rounded(torch.tensor(value), torch.tensor(0.5), torch.tensor(3), bits=4) == integer

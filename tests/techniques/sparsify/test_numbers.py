"""What leaves, and what the rest becomes, is what the papers' algorithms say, on any layer and in any pattern."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optimum_slim.techniques.sparsify.masks import block_sums, lowest, lowest_two_of_four, spread
from optimum_slim.techniques.sparsify.sparsegpt import sparsegpt
from optimum_slim.techniques.sparsify.wanda import wanda_scores
from tests.techniques.sparsify.reference import (
    BLOCKS,
    layer,
    magnitude_mask,
    sparsegpt_weight,
    two_lowest_of_four,
    wanda_mask,
)

# Outputs, inputs and ratio; blocks of every pattern reach over some edge.
LAYERS = [(16, 32, 0.5), (12, 48, 0.8), (7, 33, 0.5), (5, 18, 0.3), (3, 3, 0.5), (1, 1, 0.5), (4, 30, 0.7)]


def output_error(weight, new, data):
    return (data @ (weight - new).T).square().sum().item()


@pytest.mark.parametrize(("outputs", "inputs", "ratio"), LAYERS)
@pytest.mark.parametrize("pattern", BLOCKS)
def test_wanda_removes_the_lowest_of_each_row(outputs, inputs, ratio, pattern):
    weight, data = layer(outputs, inputs)
    gone = lowest(wanda_scores(weight, data.norm(dim=0)), ratio, pattern, by_row=True)
    assert np.array_equal(gone.numpy(), wanda_mask(weight.numpy(), data.numpy(), ratio, pattern))


@pytest.mark.parametrize(("outputs", "inputs", "ratio"), LAYERS)
@pytest.mark.parametrize("pattern", BLOCKS)
def test_magnitude_removes_the_smallest_of_the_layer(outputs, inputs, ratio, pattern):
    weight, _ = layer(outputs, inputs)
    gone = lowest(weight.abs(), ratio, pattern, by_row=False)
    assert np.array_equal(gone.numpy(), magnitude_mask(weight.numpy(), ratio, pattern))


@pytest.mark.parametrize(("outputs", "inputs", "ratio"), LAYERS)
@pytest.mark.parametrize("pattern", BLOCKS)
def test_sparsegpt_zeros_what_costs_least_and_solves_for_the_columns_after(outputs, inputs, ratio, pattern):
    weight, data = layer(outputs, inputs)
    hessian = 2 * data.T @ data / len(data)
    new = sparsegpt(weight, hessian, ratio, pattern, block_size=16, damp=0.01)
    wanted = sparsegpt_weight(weight.numpy(), hessian.numpy(), ratio, pattern, size=16, damp=0.01)
    assert np.array_equal(new.numpy() == 0, np.abs(wanted) < 1e-12)
    assert np.allclose(new.numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("pattern", BLOCKS)
def test_sparsegpt_is_right_across_its_usual_blocks_of_128_columns(pattern):
    weight, data = layer(6, 140, rows=400)
    hessian = data.T @ data
    wanted = sparsegpt_weight(weight.numpy(), hessian.numpy(), 0.5, pattern, size=128, damp=0.01)
    assert np.allclose(sparsegpt(weight, hessian, 0.5, pattern).numpy(), wanted, atol=1e-3)


@pytest.mark.parametrize("pattern", BLOCKS)
def test_each_method_costs_less_output_than_the_simpler_one(pattern):
    weight, data = layer(32, 64)
    by_magnitude = weight.masked_fill(lowest(weight.abs(), 0.5, pattern, by_row=False), 0)
    by_wanda = weight.masked_fill(lowest(wanda_scores(weight, data.norm(dim=0)), 0.5, pattern, by_row=True), 0)
    solved = sparsegpt(weight, data.T @ data, 0.5, pattern)
    errors = [output_error(weight, new, data) for new in (by_magnitude, by_wanda, solved)]
    assert errors[2] < 0.9 * errors[1] < 0.9 * errors[0]


def test_the_scale_of_the_hessian_has_no_say():
    weight, data = layer(8, 32)
    hessian = data.T @ data
    assert torch.allclose(
        sparsegpt(weight, hessian, 0.5, "4x1"), sparsegpt(weight, hessian / 512, 0.5, "4x1"), atol=1e-5
    )


def test_inputs_that_are_always_zero_lose_their_weights_first():
    weight, data = layer(8, 32)
    data[:, [3, 17]] = 0
    hessian = data.T @ data
    new = sparsegpt(weight, hessian, 0.25, "unstructured")
    assert not new[:, [3, 17]].any()
    wanted = sparsegpt_weight(weight.numpy(), hessian.numpy(), 0.25, "unstructured", size=128, damp=0.01)
    assert np.allclose(new.numpy(), wanted, atol=1e-4)


def test_sparsegpt_leaves_its_arguments_as_they_are():
    weight, data = layer(8, 32)
    hessian = data.T @ data
    before = weight.clone(), hessian.clone()
    assert torch.equal(sparsegpt(weight, hessian, 0.0, "unstructured"), weight)
    sparsegpt(weight, hessian, 0.5, "unstructured")
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_sparsegpt_chooses_in_columns_that_hold_whole_blocks():
    with pytest.raises(ValueError, match="block_size must be a multiple of 4, not 10"):
        sparsegpt(torch.ones(4, 20), torch.eye(20), 0.5, "4x1", block_size=10)


def test_of_equal_scores_the_first_leave():
    gone = lowest(torch.ones(2, 5000), 0.5, "unstructured", by_row=True)
    assert gone[:, :2500].all()
    assert not gone[:, 2500:].any()


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 6, 7, 8])
def test_of_four_neighbours_at_most_two_stay_also_at_the_edge(columns):
    scores = torch.rand(6, columns, generator=torch.Generator().manual_seed(0))
    gone = lowest_two_of_four(scores)
    assert np.array_equal(gone.numpy(), two_lowest_of_four(scores.numpy()))
    assert all((~part).sum(1).max() <= 2 for part in gone.split(4, dim=1))


@pytest.mark.parametrize("pattern", BLOCKS)
def test_sums_over_blocks_hold_everything_once(pattern):
    scores = torch.rand(7, 33)
    inputs, outputs = BLOCKS[pattern]
    sums = block_sums(scores, pattern)
    assert sums.shape == (-(-7 // outputs), -(-33 // inputs))
    assert sums.sum() == pytest.approx(scores.sum().item(), rel=1e-5)
    assert sums[0, 0] == pytest.approx(scores[:outputs, :inputs].sum().item(), rel=1e-5)
    assert sums[-1, -1] == pytest.approx(scores[-(7 % outputs or outputs) :, -(33 % inputs or inputs) :].sum().item())
    assert spread(sums, pattern, 7, 33).shape == scores.shape

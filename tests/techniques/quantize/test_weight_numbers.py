"""What weights are rounded to is what the published algorithms say, on any layer, in any groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optimum_slim.model.rounding import range_grid, rounded, searched_grid
from optimum_slim.techniques.quantize.awq import awq_scales
from optimum_slim.techniques.quantize.gptq import gptq
from optimum_slim.techniques.quantize.hqq import hqq
from optimum_slim.techniques.quantize.rtn import rtn
from tests.techniques.quantize.reference import ROOM, awq_search, gptq_weight, grid_of_range
from tests.techniques.sparsify.reference import layer

# Outputs, inputs, group and block; groups and blocks of every kind reach over some edge.
LAYERS = [(16, 64, 16, 128), (5, 70, 16, 32), (8, 96, 32, 32), (3, 40, None, 16), (1, 16, 16, 16), (6, 150, 64, 128)]
KINDS = [(4, True), (4, False), (8, True), (8, False), (2, False)]


def floats(q, scale, zero_point, group_size):
    size = group_size or q.shape[1]
    scale, zero_point = (one.repeat_interleave(size, 1)[:, : q.shape[1]] for one in (scale, zero_point))
    return (q.int() - zero_point.int()) * scale


def roomy(weight, bits, symmetric):
    scale, zero_point = range_grid(weight, bits, symmetric)
    return scale * ROOM, zero_point


def error(weight, found, group_size, hessian):
    off = floats(*found, group_size) - weight
    return float((off @ hessian * off).sum())


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
@pytest.mark.parametrize(("outputs", "inputs", "size", "block"), LAYERS)
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_is_the_published_algorithm(outputs, inputs, size, block, bits, symmetric, ordered, monkeypatch):
    monkeypatch.setattr("optimum_slim.techniques.quantize.gptq.range_grid", roomy)
    weight, data = layer(outputs, inputs)
    hessian = 2 * data.T @ data / len(data)
    q, scale, zero_point = gptq(weight, hessian, bits, size, symmetric, ordered=ordered, block_size=block)
    wanted = gptq_weight(weight, hessian, bits, size, symmetric, ordered, block)
    assert q.dtype == zero_point.dtype == torch.uint8
    assert int(q.max()) < 2**bits
    near = np.isclose(floats(q, scale, zero_point, size).numpy(), wanted, rtol=1e-3, atol=1e-5)
    assert near.mean() > 0.99 if bits == 8 else near.all()  # a weight between two of many integers may go either way


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_gptq_leaves_less_error_in_the_outputs_than_rounding_to_nearest(bits, symmetric, ordered):
    weight, data = layer(64, 128)
    hessian = data.T @ data / len(data)
    nearest = range_grid(weight.view(64, -1, 32), bits, symmetric)
    parts = rounded(weight.view(64, -1, 32), nearest[0][..., None], nearest[1][..., None], bits)
    plain = parts.view(64, 128).to(torch.uint8), nearest[0], nearest[1].to(torch.uint8)
    found = gptq(weight, hessian, bits, 32, symmetric, ordered=ordered)
    assert error(weight, found, 32, hessian) < 0.7 * error(weight, plain, 32, hessian)


def test_gptq_of_independent_inputs_of_one_size_rounds_to_nearest():
    weight, _ = layer(8, 64)
    q, scale, zero_point = gptq(weight, torch.eye(64), 4, 32, True)
    wanted, zero = range_grid(weight.view(8, 2, 32), 4, True)
    assert torch.equal(scale, wanted)
    assert torch.equal(zero_point.int(), zero)
    parts = rounded(weight.view(8, 2, 32), wanted[..., None], zero[..., None], 4)
    assert torch.equal(q.int(), parts.view(8, 64))


def test_inputs_that_are_always_zero_take_no_part():
    weight, data = layer(8, 64)
    data[:, 5] = 0
    found = gptq(weight, data.T @ data, 4, 16, False)
    assert (floats(*found, 16)[:, 5] == 0).all()


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_the_grid_of_a_range_spans_it(bits, symmetric):
    weight, _ = layer(12, 32)
    scale, zero_point = range_grid(weight, bits, symmetric)
    wanted, zero = grid_of_range(weight.numpy(), bits, symmetric)
    np.testing.assert_allclose(scale.numpy(), wanted, rtol=1e-6)
    np.testing.assert_array_equal(zero_point.numpy(), zero)


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_a_searched_grid_rounds_no_worse_than_that_of_the_range(bits, symmetric):
    weight, _ = layer(200, 32)
    root = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    moment = root.T @ root / 32

    def errors(scale, zero_point):
        found = (rounded(weight, scale[:, None], zero_point[:, None], bits) - zero_point[:, None]) * scale[:, None]
        off = found - weight
        return (off @ moment * off).sum(1)

    found = errors(*searched_grid(weight, bits, symmetric, moment))
    plain = errors(*range_grid(weight, bits, symmetric))
    assert (found <= plain * 1.00001).all()
    assert bits == 8 or found.sum() < 0.95 * plain.sum()


def test_a_symmetric_group_may_be_turned_around_so_that_its_largest_weight_has_an_integer():
    weight = torch.cat([torch.full((1, 1), 8.0), torch.arange(-7.0, 8.0)[None]], 1)
    scale, zero_point = searched_grid(weight, 4, True)
    assert scale.item() == pytest.approx(-1, rel=0.1)
    q, scale, zero_point = rtn(weight, 4, None, True, searched=True)
    assert (floats(q, scale, zero_point, None) - weight).abs().max() <= 0.2


@pytest.mark.parametrize("method", [rtn, hqq])
@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
def test_weights_of_nothing_have_a_grid_too(bits, symmetric, method):
    q, scale, zero_point = method(torch.zeros(2, 32), bits, 16, symmetric)
    assert (floats(q, scale, zero_point, 16) == 0).all()
    assert (scale != 0).all()


@pytest.mark.parametrize(("bits", "symmetric"), KINDS)
@pytest.mark.parametrize("size", [16, 48, None])
def test_hqq_lowers_the_sum_that_it_is_to_lower(bits, symmetric, size):
    weight, _ = layer(64, 112)
    weight[::3, ::10] *= 4  # some outliers

    def total(found):
        return float((floats(*found, size) - weight).abs().pow(0.7).sum())

    assert total(hqq(weight, bits, size, symmetric)) < 0.99 * total(rtn(weight, bits, size, symmetric))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [16, 32])
def test_awq_takes_the_scales_of_the_published_search(bits, size):
    weight, data = layer(24, 96)
    data = data * torch.logspace(0, 1, 96)
    found = awq_scales(weight, data.T @ data / len(data), data.abs().mean(0), bits, size, False)
    wanted = awq_search(weight.numpy(), data.numpy(), bits, size)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3)
    assert found.max() > 1.1 * found.min()

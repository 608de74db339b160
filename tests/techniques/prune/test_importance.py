"""Scores are the energy they claim to be, and refitted weights come as close as least squares can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from optimum_slim.techniques.prune.importance import (
    dense_weight,
    group_energy,
    highest,
    kept_of,
    mistakes_in_amount,
    refit,
    refitted,
)


def drawn(outputs=6, inputs=12, rows=200, alike=False):
    """A weight [outputs, inputs], and inputs [rows, inputs] that are correlated, or nearly linear in each other."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(inputs, inputs, generator=generator) * torch.logspace(0, -3 if alike else -0.5, inputs)[:, None]
    data = torch.randn(rows, inputs, generator=generator) @ mix
    return torch.randn(outputs, inputs, generator=generator), data


def gram_of(data):
    return data.T @ data / len(data)


def error(weight, data, kept, new):
    """Mean squared distance of the cut layer's output, in float64."""
    whole, part = data.double() @ weight.double().T, data[:, kept].double() @ new.double().T
    return (whole - part).square().sum(1).mean().item()


def test_energy_of_single_inputs_is_wandas_score_squared():
    weight, data = drawn()
    wanda = weight.abs() * data.square().mean(0).sqrt()
    assert torch.allclose(group_energy(weight, gram_of(data), group=1), wanda.square().sum(0), rtol=1e-4)


@pytest.mark.parametrize("group", [2, 3, 6, 12])
def test_energy_of_a_group_is_the_mean_squared_output_that_it_causes(group):
    weight, data = drawn()
    parts = [slice(start, start + group) for start in range(0, 12, group)]
    alone = torch.stack([(data[:, part] @ weight[:, part].T).square().sum(1).mean() for part in parts])
    assert torch.allclose(group_energy(weight, gram_of(data), group), alone, rtol=1e-4)


def test_the_constant_input_of_a_bias_is_in_no_group():
    weight, data = drawn()
    with_bias = torch.cat([data, torch.ones(len(data), 1)], dim=1)
    scores = group_energy(weight, gram_of(with_bias), group=4)
    assert torch.allclose(scores, group_energy(weight, gram_of(data), group=4), rtol=1e-4)


@pytest.mark.parametrize("alike", [False, True], ids=["correlated", "nearly dependent"])
def test_refitted_weights_are_least_squares_as_the_damping_goes(alike):
    weight, data = drawn(alike=alike)
    kept = [0, 2, 3, 7, 11]
    new = refitted(weight, gram_of(data.double()), kept, damp=1e-12)
    wanted = np.linalg.lstsq(data[:, kept].double().numpy(), (data.double() @ weight.double().T).numpy(), rcond=None)[0]
    assert error(weight, data, kept, new) <= error(weight, data, kept, torch.tensor(wanted.T)) * 1.0001
    if not alike:
        assert np.allclose(new.numpy(), wanted.T, atol=1e-4)


@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 2, 3, 7, 11], list(range(11)), list(range(12))], ids=len)
@pytest.mark.parametrize("alike", [False, True], ids=["correlated", "nearly dependent"])
@pytest.mark.parametrize("dead", [False, True], ids=["others speak", "others are silent"])
def test_refitting_never_does_worse_than_leaving_weights_as_they_are(kept, alike, dead):
    weight, data = drawn(alike=alike)
    if dead:
        data[:, [place for place in range(12) if place not in kept]] = 0
    new = refitted(weight, gram_of(data), kept)
    size = (data.double() @ weight.double().T).square().sum(1).mean().item()
    assert error(weight, data, kept, new) <= error(weight, data, kept, weight[:, kept]) + 1e-9 * size


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d"])
def test_a_refitted_linear_makes_up_for_what_is_gone_also_with_its_bias(kind):
    torch.manual_seed(0)
    data = torch.randn(300, 8) + 2  # what goes had a mean, which the bias takes over
    kept = [0, 1, 3, 4, 6]
    if kind == "conv1d":
        whole, cut = Conv1D(5, 8), Conv1D(5, 5)
        nn.init.normal_(whole.bias)
        cut.weight.data, cut.bias.data = whole.weight.data[kept].clone(), whole.bias.data.clone()
    else:
        whole, cut = nn.Linear(8, 5, bias=kind == "linear"), nn.Linear(5, 5, bias=kind == "linear")
        cut.weight.data = whole.weight.data[:, kept].clone()
        if whole.bias is not None:
            cut.bias.data = whole.bias.data.clone()
    inputs = data if whole.bias is None else torch.cat([data, torch.ones(300, 1)], dim=1)
    with torch.no_grad():
        assert torch.allclose(inputs @ dense_weight(whole).T, whole(data), atol=1e-5)
        before = (whole(data) - cut(data[:, kept])).square().mean()
        refit(cut, dense_weight(whole), gram_of(inputs), kept)
        after = (whole(data) - cut(data[:, kept])).square().mean()
    assert after < before / 2


@pytest.mark.parametrize(
    ("total", "ratio", "keep", "round_to", "stay"),
    [
        (12, 0.0, None, 1, 12),
        (12, 0.25, None, 1, 9),
        (12, 0.5, None, 1, 6),
        (12, 0.99, None, 1, 1),  # at least one
        (1, 0.9, None, 1, 1),
        (1536, 0.25, None, 16, 1152),
        (100, 0.5, None, 16, 48),  # 50 is nearer to 48 than to 64
        (100, 0.0, None, 16, 100),  # nothing is rounded away where nothing is to go
        (100, 0.99, None, 16, 16),  # at least one group
        (10, 0.5, None, 16, 10),  # and at most all
        (12, None, 5, 1, 5),
        (12, None, 5, 16, 5),  # a number is meant as it is
        (12, None, 99, 1, 12),
    ],
)
def test_so_many_stay(total, ratio, keep, round_to, stay):
    assert kept_of(total, ratio, keep, round_to) == stay


@pytest.mark.parametrize(
    ("ratio", "keep", "mistake"),
    [
        (0.0, None, None),
        (0.99, None, None),
        (None, 1, None),
        (None, None, "give either ratio"),
        (0.5, 3, "give either ratio"),
        (1.0, None, "ratio must be at least 0 and below 1, not 1.0"),
        (-0.1, None, "ratio must be at least 0 and below 1, not -0.1"),
        (float("nan"), None, "ratio must be at least 0 and below 1, not nan"),
        (None, 0, "keep must be at least 1, not 0"),
    ],
)
def test_amounts_are_one_sound_number(ratio, keep, mistake):
    assert [mistake is not None and found.startswith(mistake) for found in mistakes_in_amount(ratio, keep)] == (
        [] if mistake is None else [True]
    )


@pytest.mark.parametrize(
    ("scores", "count", "places"),
    [
        ([1.0, 3.0, 2.0], 2, [1, 2]),
        ([1.0, 3.0, 2.0], 3, [0, 1, 2]),
        ([2.0, 2.0, 2.0, 2.0], 2, [0, 1]),  # of equal scores the first
        ([0.0, 5.0, 0.0, 5.0, 0.0], 3, [0, 1, 3]),
    ],
)
def test_the_highest_scores_win_in_their_order(scores, count, places):
    assert highest(torch.tensor(scores), count) == places


def test_of_many_equal_scores_the_first_win():
    assert highest(torch.zeros(5000), 2000) == list(range(2000))

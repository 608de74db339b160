"""Scores are the energy they claim to be, and refitted weights come as close as least squares can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from optimum_slim.data.statistics import losses_without
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.techniques.prune.ffn import PruneFFN
from optimum_slim.techniques.prune.heads import PruneHeads
from optimum_slim.techniques.prune.importance import (
    dense_weight,
    group_energy,
    highest,
    kept_of,
    made_up,
    mistakes_in_amount,
    refit,
    refitted,
)
from optimum_slim.techniques.prune.kv_heads import PruneKVHeads
from optimum_slim.techniques.prune.layers import PruneLayers
from tests.contracts import all_answers
from tests.tiny import DECODERS, FAMILIES, GROUPED, tiny, token_batches


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


def test_what_goes_is_made_up_for_by_ridge_regression():
    weight, data = drawn()
    added = torch.randn(len(data), 6) + data @ torch.randn(6, 12).T
    gram, cross = gram_of(data.double()), added.double().T @ data.double() / len(data)
    new = made_up(weight, gram, cross, damp=0.1)
    # As least squares with rows that pull each weight to what it was.
    pull = (0.1 * gram.diagonal().mean() * len(data)).sqrt() * torch.eye(12, dtype=torch.float64)
    rows = torch.cat([data.double(), pull]).numpy()
    wanted = torch.cat([data.double() @ weight.double().T + added.double(), pull @ weight.double().T]).numpy()
    assert np.allclose(new.numpy(), np.linalg.lstsq(rows, wanted, rcond=None)[0].T, atol=1e-4)
    assert torch.equal(made_up(weight, gram, torch.zeros(6, 12)), weight)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("kept", [[0, 3], [0, 1, 3], [0, 2], [1, 2]], ids=str)
def test_the_layer_before_makes_up_for_those_that_go(family, kept):
    texts, distances = token_batches(((8, 40), (8, 60))), []
    for refitting in (False, True):
        whole, model = tiny(family, num_hidden_layers=4), tiny(family, num_hidden_layers=4)
        PruneLayers(which=kept, refit=refitting).apply(model, calibration_data=texts)
        with torch.no_grad():
            states = [one.base_model(**texts[0]).last_hidden_state[0] for one in (whole, model)]
        distances.append((states[0] - states[1]).square().mean().item())
    if kept == [1, 2]:  # nothing stands before the first layer, and what the last added is made up for
        assert distances[1] < distances[0]
    else:
        assert distances[1] < 0.95 * distances[0]


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


def silenced(family, role, inputs):
    """A model whose linears of this role ignore some inputs, others in each layer."""
    model = tiny(family)
    with torch.no_grad():
        for block in blocks_of(model):
            linear = getattr(block, role)
            weight = linear.weight if isinstance(linear, Conv1D) else linear.weight.T
            weight[inputs(block.index)] = 0
    return model


def head(*numbers, size=16):
    return lambda layer: [(n + layer) % 4 * size + at for n in numbers for at in range(size)]


DEAD = [
    *((PruneFFN(keep=96, refit=False), family, "ffn_out", lambda layer: range(layer, 128, 4)) for family in FAMILIES),
    *((PruneHeads(keep=3, refit=False), family, "output", head(1)) for family in FAMILIES if family not in GROUPED),
    (PruneHeads(keep=2, refit=False), "llama", "output", head(0, 2)),
    (PruneHeads(keep=2, refit=False), "qwen3", "output", head(0, 2, size=32)),
    (PruneKVHeads(keep=1), "mistral", "output", lambda layer: range(layer % 2 * 32, layer % 2 * 32 + 32)),
]


@pytest.mark.parametrize(("technique", "family", "role", "inputs"), DEAD)
def test_what_adds_nothing_goes_first_and_changes_no_logit(technique, family, role, inputs):
    model = silenced(family, role, inputs)
    before = all_answers(model)
    technique.apply(model, calibration_data=token_batches())
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(before, all_answers(model), strict=True))


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("idle", [0, 1, 2])
def test_the_layer_that_turns_its_input_least_goes_first(family, idle):
    model = tiny(family)
    for linear in (list(blocks_of(model))[idle].output, list(blocks_of(model))[idle].ffn_out):
        nn.init.zeros_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    before = all_answers(model)
    PruneLayers(keep=2, which="influence").apply(model, calibration_data=token_batches())
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(before, all_answers(model), strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("tried_on", "read"), [(16, slice(None)), (2, slice(None, None, 3)), (1, slice(1))])
def test_layers_go_one_by_one_each_time_the_least_missed(family, tried_on, read):
    model, (batch,) = tiny(family, num_hidden_layers=5), token_batches(((6, 30),))
    texts = [{key: value[read] for key, value in batch.items()}]
    weights = [block.ffn_out.weight.clone() for block in blocks_of(model)]
    first = int(losses_without(model, texts).argmin())
    second = int(losses_without(model, texts, [first]).argmin())
    PruneLayers(keep=3, which="loss", tried_on=tried_on).apply(model, calibration_data=[batch])
    stayed = [weights[index] for index in range(5) if index not in (first, second)]
    assert all(torch.equal(block.ffn_out.weight, one) for block, one in zip(blocks_of(model), stayed, strict=True))


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "opt"])
@pytest.mark.parametrize("technique", [PruneFFN(ratio=0.5), PruneHeads(ratio=0.5)], ids=["neurons", "heads"])
def test_refitting_brings_the_first_cut_layers_output_closer(technique, family):
    texts = token_batches(((8, 40), (8, 60)))
    distances = []
    for refitting in (False, True):
        whole, model = tiny(family, num_hidden_layers=1), tiny(family, num_hidden_layers=1)
        replace(technique, refit=refitting).apply(model, calibration_data=texts)
        with torch.no_grad():
            states = [one.base_model(**texts[0]).last_hidden_state[0] for one in (whole, model)]
        distances.append((states[0] - states[1]).square().mean().item())
    assert distances[1] < 0.9 * distances[0]


@pytest.mark.parametrize("family", ["roberta", "qwen2"])
@pytest.mark.parametrize(
    "technique",
    [PruneFFN(ratio=0.5), PruneHeads(ratio=0.5), PruneLayers(keep=2, which="influence")],
    ids=["neurons", "heads", "layers"],
)
def test_padding_of_calibration_texts_has_no_say(technique, family):
    (batch,) = token_batches(((6, 30),))
    texts = [
        {key: value[i : i + 1, : batch["attention_mask"][i].sum()] for key, value in batch.items()} for i in range(6)
    ]
    padded, alone = tiny(family), tiny(family)
    technique.apply(padded, calibration_data=[batch])
    technique.apply(alone, calibration_data=texts)
    pairs = zip(padded.parameters(), alone.parameters(), strict=True)
    assert all(torch.allclose(one, other, atol=5e-3) for one, other in pairs)

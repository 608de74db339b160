"""Weights end on grids that tell what they are, by every method; texts and order decide where they should."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace

import pytest
import torch

from optimum_slim.data.stream import blocks_in_turn, products
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.channels import links_of
from optimum_slim.model.checkpoint import load_model, save_model
from optimum_slim.model.grids import grids_in, grids_of
from optimum_slim.model.matrices import matrix
from optimum_slim.model.shape import shape_in
from optimum_slim.model.targets import targeted
from optimum_slim.techniques.quantize.awq import awq_scales, products_and_sizes
from optimum_slim.techniques.quantize.weights import QuantizeWeights
from tests.tiny import DECODERS, ENCODERS, answers, mostly_slow, tiny, tiny_config, token_batches

TEXTS = token_batches(((8, 24), (8, 24)))
NO_LIBRARY = any(importlib.util.find_spec(name) is None for name in ("neural_compressor", "auto_round"))
SETTINGS = [
    {"bits": 4, "group_size": 32},
    {"bits": 4, "group_size": 48, "symmetric": False},
    {"bits": 8, "group_size": None},
    {"bits": 8, "group_size": 16, "symmetric": False},
]


def quantized(technique, model):
    technique.apply(model, **({"calibration_data": TEXTS} if technique.asks() else {}))
    return model


def answers_off(model, other):
    return sum(float((answers(model, batch) - answers(other, batch)).square().mean()) for batch in TEXTS)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "hqq"])
def test_weights_stand_on_their_grids_and_survive_saving(method, settings, tmp_path):
    model = tiny("llama")
    before = copy.deepcopy(model)
    technique = QuantizeWeights(method=method, **settings)
    foretold = copy.deepcopy(model)
    technique.note(foretold)
    quantized(technique, model)
    names = {f"{name}.weight" for name in targeted(model, ("attention", "ffn"))}
    assert grids_of(model).keys() == names
    assert grids_in(model.config) == grids_in(foretold.config)
    for name, grid in grids_of(model).items():
        integers = grid.integers(name, model.get_parameter(name))
        assert int(integers.max()) < 2 ** settings["bits"]
        assert not torch.equal(model.get_parameter(name), before.get_parameter(name))
        if settings.get("symmetric", True):
            assert (grid.zero_point == 2 ** (settings["bits"] - 1)).all()
    save_model(model, tmp_path)
    assert answers_off(load_model(tmp_path), model) == 0
    limit = 3e-3 if settings["bits"] == 8 else 0.3
    spread = sum(float(answers(before, batch).var()) for batch in TEXTS)
    assert answers_off(model, before) < limit * spread


@pytest.mark.parametrize("family", mostly_slow("llama", "gpt2", "bert"))
def test_gptq_answers_closer_than_rounding_to_nearest(family):
    before = tiny(family)
    nearest, found = (
        quantized(QuantizeWeights(method=method, bits=4, searched=False), copy.deepcopy(before))
        for method in ("rtn", "gptq")
    )
    assert answers_off(found, before) < 0.9 * answers_off(nearest, before)


def test_each_block_is_rounded_on_what_the_rounded_ones_before_it_send():
    model, before = tiny("llama"), tiny("llama")
    technique = QuantizeWeights(targets=("*.down_proj",), ordered=False)
    quantized(technique, model)
    inputs = [f"{block.name}.mlp.down_proj" for block in blocks_of(before)]
    alone = copy.deepcopy(before)
    for name in inputs[:2]:
        matrix(alone, name).copy_(matrix(model, name))
    quantized(replace(technique, targets=(inputs[2],)), alone)
    assert torch.equal(matrix(alone, inputs[2]), matrix(model, inputs[2]))
    quantized(replace(technique, targets=(inputs[2],)), before)
    assert not torch.equal(matrix(before, inputs[2]), matrix(model, inputs[2]))


@pytest.mark.parametrize("family", mostly_slow("llama", "gpt2", "opt", families=DECODERS))
def test_awq_folds_scales_that_change_no_answer(family):
    model, before = tiny(family), tiny(family)
    names = targeted(model, ("attention", "ffn"))
    norms = [one.clone() for name, one in model.named_parameters() if "norm" in name or "ln_" in name]
    for block, statistics in blocks_in_turn(model, names, TEXTS, products_and_sizes):
        QuantizeWeights(method="awq")._scaled(model, block, statistics)
    after = [one for name, one in model.named_parameters() if "norm" in name or "ln_" in name]
    assert any(not torch.equal(one, other) for one, other in zip(norms, after, strict=True))
    for batch in TEXTS:
        wanted = answers(before, batch)
        assert (answers(model, batch) - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_the_moments_after_folding_are_those_of_what_linears_then_read():
    model = tiny("llama")
    names = targeted(model, ("attention", "ffn"))
    (block, statistics) = next(blocks_in_turn(model, names, TEXTS, products_and_sizes))
    found = QuantizeWeights(method="awq")._scaled(model, block, statistics)
    _, wanted = next(blocks_in_turn(model, names, TEXTS, products))
    for name, moment in wanted.items():
        torch.testing.assert_close(found[name], moment, rtol=1e-3, atol=1e-4 * float(moment.abs().max()))


def test_awq_answers_closer_than_rounding_to_nearest_where_few_inputs_are_large():
    before = tiny("llama")
    with torch.no_grad():
        for link in links_of(before):
            scales = torch.ones(len(link.shared(torch.ones(matrix(before, link.readers[0]).shape[1]))))
            scales[::16] = 0.02  # so these channels are 50 times as large, and what reads them as small
            link.move(before, scales)
    nearest, found = (
        quantized(QuantizeWeights(method=method, bits=4, searched=False), copy.deepcopy(before))
        for method in ("rtn", "awq")
    )
    assert answers_off(found, before) < 0.7 * answers_off(nearest, before)


def test_of_inputs_of_one_size_awq_scales_none():
    draw = torch.Generator().manual_seed(0)
    assert torch.equal(awq_scales(torch.randn(8, 32, generator=draw), torch.eye(32), torch.ones(32), 4, 16, True),
                       torch.ones(32))  # fmt: skip


def test_only_what_needs_texts_asks_for_them():
    asked = {method: QuantizeWeights(method=method).asks() for method in ("rtn", "gptq", "awq", "hqq", "autoround")}
    texts = ("calibration_data",)
    assert asked == {"rtn": (), "gptq": texts, "awq": texts, "hqq": (), "autoround": (*texts, "seed", "workdir")}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"group_size": 24}, "group_size must be a multiple of 16, as the file's blocks are, or null; not 24"),
        ({"group_size": 0}, "group_size must be a multiple of 16"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"method": "autoround", "bits": 8, "symmetric": False}, "symmetric must be true for autoround of 8 bits"),
        ({"targets": ()}, "targets must name roles"),
    ],
)
def test_mistakes_name_the_setting(settings, told):
    assert told in " ".join(QuantizeWeights(**settings).mistakes())


@pytest.mark.parametrize("family", ENCODERS)
def test_awq_and_autoround_are_refused_where_they_cannot_work(family):
    config = tiny_config(family)
    assert "awq needs a norm before each linear" in " ".join(refusals("awq", config))
    assert "autoround works on decoders whose linears are torch's" in " ".join(refusals("autoround", config))
    assert not refusals("gptq", config)


def test_a_library_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("optimum_slim.techniques.quantize.weights.find_spec", lambda name: None)
    assert refusals("autoround", tiny_config("llama")) == [
        "autoround needs neural_compressor and auto_round: pip install 'optimum-slim[weights]'"
    ]


def refusals(method, config):
    return list(QuantizeWeights(method=method).refusals(config, shape_in(config)))


def test_opt_with_norms_behind_is_refused_too():
    config = tiny_config("opt", do_layer_norm_before=False)
    assert "awq needs a norm before" in " ".join(refusals("awq", config))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_same_texts_give_the_same_bits(method):
    one, other = (quantized(QuantizeWeights(method=method), tiny("llama")) for _ in range(2))
    for (name, parameter), again in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, again), name

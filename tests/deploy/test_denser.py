"""Weights come back from before their zeros where these cost too much: the fewest of those that lost most."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from optimum_slim.data.texts import Data
from optimum_slim.deploy.denser import choose_denser, make_denser
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.feature_extraction import FeatureExtraction
from optimum_slim.tasks.task import loss_of_quality
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude
from tests.tiny import tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An embedder whose feed-forward layers are half zeros, their weights from before, and texts with its answers from
    before; the zeros of one layer cost most."""
    model = tiny("xlm-roberta")
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight.mul_(4)
    task = FeatureExtraction(model.config, tiny_tokenizer("xlm-roberta"), Data(), tmp_path_factory.mktemp("none"))
    rows = [{"input_ids": [0, 9 + i, 40, 77 - i, 2], "attention_mask": [1] * 5} for i in range(8)]
    validation = Evaluation(task, {"": rows})
    validation = replace(validation, original=validation.outcomes(model))
    technique = SparsifyMagnitude(ratio=0.5, pattern="4x1", targets=("ffn",))
    dense = {
        f"{name}.weight": model.get_parameter(f"{name}.weight").detach().clone() for name in technique.targeted(model)
    }
    technique.apply(model)
    return model, dense, validation


def loss(model, validation):
    before = validation.metrics(validation.original)
    return loss_of_quality(validation.task, before, validation.quality(model))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def with_denser(model, dense, names, measure):
    """What is measured with these weights dense; the model stays as it was."""
    before = {name: model.get_parameter(name).data for name in names}
    for name in names:
        model.get_parameter(name).data = dense[name]
    found = measure(model)
    for name, value in before.items():
        model.get_parameter(name).data = value
    return found


def test_the_fewest_come_back_that_hold_the_limit_and_those_that_lost_most_first(made):
    model, dense, validation = made
    limit, before = loss(model, validation) / 3, state(model)
    chosen = choose_denser(model, dense, validation, limit, 4)
    assert "layer.1" in next(iter(chosen))
    assert 0 < len(chosen) < len(dense)
    assert list(chosen.values()) == sorted(chosen.values(), reverse=True)
    assert with_denser(model, dense, chosen, lambda m: loss(m, validation)) <= limit
    assert with_denser(model, dense, list(chosen)[:-1], lambda m: loss(m, validation)) > limit
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_none_comes_back_where_zeros_cost_little_enough_or_none_would_suffice(made):
    model, dense, validation = made
    assert choose_denser(model, dense, validation, 2 * loss(model, validation), 4) == {}
    some = {name: weight for name, weight in dense.items() if "layer.0" in name}
    assert choose_denser(model, some, validation, 1e-6, 4) == {}


def test_a_denser_weight_is_no_longer_told_to_be_sparse(made):
    model, dense, _ = made
    name, *others = dense
    before, listed = model.get_parameter(name).data, dict(model.config.slim)
    make_denser(model, dense, [name])
    assert torch.equal(model.get_parameter(name), dense[name])
    assert sparsity_in(model.config) == dict.fromkeys(others, "4x1")
    model.get_parameter(name).data, model.config.slim = before, listed

"""Zeros of weights that the config lists outlive training; other zeros are weights like any other."""

from __future__ import annotations

import pytest
import torch

from optimum_slim.model.sparsity import note_sparsity, sparse_weights
from optimum_slim.techniques.train import Train
from optimum_slim.training import callbacks
from optimum_slim.training.batches import TrainingData
from tests.stopping import stopped_after
from tests.tiny import VOCABULARY, tiny, tiny_tokenizer

LISTED = ("encoder.layer.{}.attention.self.query.weight", "encoder.layer.{}.output.dense.weight")
NAMES = [f"bert.{name.format(layer)}" for layer in range(3) for name in LISTED]
UNLISTED = "bert.encoder.layer.0.attention.self.value.weight"


def collate(examples):
    return {name: torch.tensor([example[name] for example in examples]) for name in examples[0]}


@pytest.fixture
def data():
    ids = torch.randint(5, VOCABULARY, (48, 12), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "attention_mask": [1] * 12, "labels": row[0] % 2} for row in ids.tolist()]
    return TrainingData(rows, collate)


def sparse_bert():
    """Every second input of the listed weights is zero, and of one that is not listed."""
    model = tiny("bert")
    for name in (*NAMES, UNLISTED):
        model.get_parameter(name).data[:, ::2] = 0
    note_sparsity(model.config, NAMES, "unstructured")
    return model


def trained(data, workdir, **settings):
    model = sparse_bert()
    Train(epochs=1, batch_size=8, labels=1.0, learning_rate=1e-2, **settings).apply(
        model, training_data=data, tokenizer=tiny_tokenizer("bert"), seed=0, workdir=workdir
    )
    return model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zeros_of_listed_weights_stay_and_the_rest_of_them_learns(data, tmp_path, precision):
    before, after = sparse_bert(), trained(data, tmp_path, precision=precision)
    assert list(sparse_weights(after)) == NAMES
    for name, weight in sparse_weights(after).items():
        assert torch.equal(weight == 0, before.get_parameter(name) == 0)
        assert not torch.equal(weight, before.get_parameter(name))
    assert int((after.get_parameter(UNLISTED) == 0).sum()) == 0


def test_nothing_of_the_pass_is_left_to_keep_zeros(data, tmp_path):
    model = trained(data, tmp_path, max_steps=1)
    weight = model.get_parameter(NAMES[0])
    assert not weight._backward_hooks
    weight.data.fill_(1.0)
    model(input_ids=torch.tensor([[5, 9]]), labels=torch.tensor([1])).loss.backward()
    torch.optim.SGD([weight], lr=1.0).step()
    assert (weight != 0).all()


def test_zeros_stay_when_training_was_stopped_and_goes_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "SAVED_EVERY", 0)
    whole = trained(data, tmp_path / "whole")
    with stopped_after(4, monkeypatch):
        trained(data, tmp_path / "stopped")
    resumed = trained(data, tmp_path / "stopped")
    assert all(torch.equal(one, whole.get_parameter(name)) for name, one in resumed.named_parameters())
    assert all(torch.equal(one == 0, sparse_bert().get_parameter(name) == 0)
               for name, one in sparse_weights(resumed).items())  # fmt: skip

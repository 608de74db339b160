"""Training that was stopped in the middle of an epoch goes on to the same weights."""

from __future__ import annotations

import pytest
import torch

from optimum_slim.techniques.distill.attentions import DistillAttentions
from optimum_slim.techniques.distill.hidden_states import DistillHiddenStates
from optimum_slim.techniques.distill.logits import DistillLogits
from optimum_slim.techniques.distill.relations import DistillRelations
from optimum_slim.techniques.train import Train
from optimum_slim.training import callbacks
from optimum_slim.training.batches import TrainingData
from tests.stopping import stopped_after
from tests.tiny import VOCABULARY, tiny, tiny_tokenizer


def collate(examples):
    return {name: torch.tensor([example[name] for example in examples]) for name in examples[0]}


@pytest.fixture
def data():
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (48, 12), generator=draw)
    return TrainingData([{"input_ids": row, "attention_mask": [1] * 12} for row in ids.tolist()], collate)


WAYS = {
    "logits": ((DistillLogits(),), 64),
    "a learned projection": ((DistillHiddenStates(),), 96),
    "all at once": ((DistillLogits(), DistillHiddenStates(), DistillRelations(), DistillAttentions()), 96),
}


def trained(data, workdir, way):
    """A student after two epochs of six steps with noise and dropout."""
    with_, width = WAYS[way]
    technique = Train(epochs=2, batch_size=8, noise=0.2, dropout=True, with_=with_)
    student, teacher = tiny("bert", hidden_dropout_prob=0.1), tiny("bert", hidden_size=width).requires_grad_(False)
    technique.apply(
        student, training_data=data, tokenizer=tiny_tokenizer("bert"), seed=3, workdir=workdir, teacher=teacher
    )
    return student.state_dict()


@pytest.mark.parametrize(
    ("way", "stop_after"),
    [("logits", 2), ("logits", 6), ("logits", 9), ("a learned projection", 9), ("all at once", 5)],
)
def test_stopped_training_goes_on_to_the_same_weights(data, tmp_path, monkeypatch, way, stop_after):
    monkeypatch.setattr(callbacks, "SAVED_EVERY", 0)
    whole = trained(data, tmp_path / "whole", way)
    with stopped_after(stop_after, monkeypatch):
        trained(data, tmp_path / "stopped", way)
    assert (tmp_path / "stopped" / f"checkpoint-{stop_after}").is_dir()
    resumed = trained(data, tmp_path / "stopped", way)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)

"""What a trained technique learns beside the model is optimized with it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from optimum_slim.techniques.train import Train
from optimum_slim.training.batches import TrainingData
from optimum_slim.training.trained import Trained
from tests.tiny import VOCABULARY, tiny, tiny_tokenizer


@dataclass
class Uphill(Trained):
    """A number that may grow without end, and another that nothing asks for."""

    def begin(self, model, teacher):
        self.number, self.unused = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.gradients = []

    def parameters(self):
        return (self.number, self.unused)

    def loss(self, student, teacher, batch):
        self.gradients.append(self.number.grad)
        return -self.number + 0 * student.logits.sum()


@pytest.fixture
def data():
    ids = torch.randint(5, VOCABULARY, (48, 12), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "attention_mask": [1] * 12} for row in ids.tolist()]
    return TrainingData(rows, lambda some: {name: torch.tensor([one[name] for one in some]) for name in some[0]})


def test_it_takes_the_optimizers_steps_and_its_gradients_do_not_add_up(data, tmp_path):
    technique = Uphill()
    train = Train(max_steps=3, batch_size=8, warmup=0.0, weight_decay=0.0, learning_rate=0.3, with_=(technique,))
    train.apply(tiny("bert"), training_data=data, tokenizer=tiny_tokenizer("bert"), seed=0, workdir=tmp_path)
    assert technique.number.item() == pytest.approx(0.3 + 0.2 + 0.1, rel=1e-4)  # AdamW's step is its learning rate
    assert technique.gradients == [None, None, None]
    assert technique.unused == 0

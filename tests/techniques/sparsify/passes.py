"""Training passes in which zeros change, and what is zero after each of their steps."""

from __future__ import annotations

import torch

from optimum_slim.model.matrices import matrix
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude
from optimum_slim.techniques.sparsify.masks import block_sums
from optimum_slim.techniques.train import Train
from optimum_slim.training.batches import TrainingData
from tests.tiny import VOCABULARY, tiny, tiny_tokenizer

STEPS = 12  # of a pass: two epochs of six
RATIOS = {"unstructured": 0.8, "2:4": 0.5, "4x1": 0.75, "4x2": 0.7, "4x4": 0.9}


def collate(examples):
    return {name: torch.tensor([example[name] for example in examples]) for name in examples[0]}


def texts():
    """48 of 12 tokens, whose first tells the label."""
    ids = torch.randint(5, VOCABULARY, (48, 12), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "attention_mask": [1] * 12, "labels": row[0] % 2} for row in ids.tolist()]
    return TrainingData(rows, collate)


def trained(technique, data, workdir, *losses, model=None, seed=0, **settings):
    """A tiny BERT, or another model, after a pass with the technique."""
    model = tiny("bert") if model is None else model
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "labels": 1.0} | settings
    train = Train(with_=(technique, *losses), **settings)
    supplies = {"teacher": tiny("bert").requires_grad_(False)} if losses else {}
    train.apply(model, training_data=data, tokenizer=tiny_tokenizer("bert"), seed=seed, workdir=workdir, **supplies)
    return model


def sparse_bert(pattern, ratio=0.5):
    model = tiny("bert")
    SparsifyMagnitude(ratio=ratio, pattern=pattern).apply(model)
    return model


def zero_blocks(weight, pattern):
    return block_sums((weight != 0).float(), pattern) == 0


def sparse_matrices(model):
    return {name: matrix(model, name.removesuffix(".weight")) for name in sparsity_in(model.config)}


def watched(technique, seen):
    """The technique, which also notes in `seen` what is zero after each step."""

    class Watched(type(technique)):
        def after_step(self, model, progress):
            for name, gone in self.gone.items():
                matrix(model, name).masked_fill_(gone, 0)  # as the trainer does, but after this
            seen.append({name: (matrix(model, name) == 0).clone() for name in self.gone})

    return Watched(**vars(technique))

"""A pass trains in the precision that its settings say, whatever a pass before it used."""

import torch

from optimum_slim.techniques.train import Train
from optimum_slim.training.batches import TrainingData
from tests.tiny import VOCABULARY, tiny, tiny_tokenizer


def collate(examples):
    return {name: torch.tensor([example[name] for example in examples]) for name in examples[0]}


def trained(workdir, precision):
    ids = torch.randint(5, VOCABULARY, (32, 12), generator=torch.Generator().manual_seed(0)).tolist()
    data = TrainingData([{"input_ids": row, "attention_mask": [1] * 12, "labels": row[0] % 2} for row in ids], collate)
    model = tiny("bert")
    Train(max_steps=4, batch_size=8, labels=1.0, learning_rate=1e-2, precision=precision).apply(
        model, training_data=data, tokenizer=tiny_tokenizer("bert"), seed=0, workdir=workdir
    )
    return model.state_dict()


def test_the_precision_of_a_pass_does_not_outlive_it(tmp_path):
    before, half, after = (trained(tmp_path / str(at), kind) for at, kind in enumerate(("fp32", "bf16", "fp32")))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert any(not torch.equal(value, half[name]) for name, value in before.items())

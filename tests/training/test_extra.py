"""Texts without labels are answered by the teacher, and the task's own loss passes over them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from datasets import Dataset

from optimum_slim.data.augment import Augment
from optimum_slim.techniques.distill.logits import DistillLogits
from optimum_slim.techniques.train import Train
from optimum_slim.training.trained import Trained
from optimum_slim.training.trainer import SlimTrainer
from tests.contracts import supplies_for
from tests.tiny import rows_for, tiny

HEADS = {
    "a class": ("bert", "ForSequenceClassification", {}),
    "a number": ("roberta", "ForSequenceClassification", {"num_labels": 1}),
    "several labels": (
        "bert",
        "ForSequenceClassification",
        {"num_labels": 2, "problem_type": "multi_label_classification"},
    ),
    "a class of each word": ("distilbert", "ForTokenClassification", {}),
    "a hidden word": ("roberta", "ForMaskedLM", {}),
}


@dataclass
class Watching(Trained):
    """Keeps the batches it sees, and adds nothing to the loss."""

    needs_teacher = True

    def __post_init__(self):
        self.batches = []

    def loss(self, student, teacher, batch):
        self.batches.append(dict(batch))
        return 0 * student.logits.sum()


def mixed(model, folder):
    """Supplies of a model, with 16 labelled texts and 16 without labels, of like lengths."""
    kind, model.config.problem_type = model.config.problem_type, None  # the rows have one label each
    supplies = supplies_for(model, folder)
    model.config.problem_type = kind
    data, task = supplies["training_data"], supplies["task"]
    examples = list(data.examples)
    if kind is not None:
        for example in examples:
            example["labels"] = [float(example["labels"]), 1.0 - example["labels"]]
    columns = "tokens" if task.name == "token-classification" else "text"
    rows = Dataset.from_list(rows_for(task.name, 48)).select(range(32, 48)).select_columns([columns])
    return supplies | {"training_data": replace(data, examples=examples[:16], extra=task.examples_of_texts(rows))}


@pytest.mark.parametrize("head", HEADS)
def test_the_own_loss_is_that_of_the_labelled_texts(head, tmp_path, monkeypatch):
    family, ending, changes = HEADS[head]
    model = tiny(family, ending, **changes)
    supplies, watching, losses = mixed(model, tmp_path), Watching(), []
    compute = SlimTrainer.compute_loss

    def noted(self, model, inputs, *rest, **others):
        losses.append((dict(inputs), compute(self, model, inputs, *rest, **others)))
        return losses[-1][1]

    monkeypatch.setattr(SlimTrainer, "compute_loss", noted)
    train = Train(epochs=1, batch_size=8, labels=2.0, learning_rate=1e-12, with_=(watching,))
    train.apply(model, **{name: supplies[name] for name in train.asks()})
    assert len(losses) == 4
    seen = 0
    for inputs, loss in losses:
        labelled = inputs.pop("labelled", torch.tensor(["labels" in inputs] * 8))
        assert len(inputs["input_ids"]) == 8
        seen += int(labelled.sum())
        wanted = 0.0
        if "labels" in inputs:
            labels = inputs.pop("labels")
            rows = {name: value[labelled] for name, value in inputs.items()}
            wanted = 2.0 * model(**rows, labels=labels).loss.item()
        assert loss.item() == pytest.approx(wanted, rel=1e-4)
    if ending != "ForTokenClassification":  # there a batch has labels for all as soon as it has for one
        assert seen == (32 if ending == "ForMaskedLM" else 16)
    assert len(watching.batches) == 4


def test_a_pass_without_a_teacher_passes_over_texts_without_labels(tmp_path):
    model = tiny("bert")
    supplies, seen = mixed(model, tmp_path), []

    @dataclass
    class Counting(Trained):
        def loss(self, student, teacher, batch):
            seen.append(len(batch["input_ids"]))
            return None

    train = Train(epochs=1, batch_size=8, labels=1.0, with_=(Counting(),))
    train.apply(model, **{name: supplies[name] for name in train.asks()})
    assert seen == [8, 8]


@pytest.mark.parametrize("settings", [{}, {"teacher_cache": True}], ids=["live", "cached"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_changed_copies_are_texts_without_labels(family, settings, tmp_path):
    model, watching = tiny(family), Watching()
    watching.__class__.logits_suffice = True
    supplies = supplies_for(model, tmp_path)
    train = Train(epochs=1, batch_size=16, labels=1.0, augment=Augment(copies=2), with_=(watching,), **settings)
    assert not list(train.mistakes())
    assert {"train_rows", "task"} < set(train.asks())
    train.apply(model, **{name: supplies[name] for name in train.asks()})
    texts = sum(len(batch["input_ids"]) for batch in watching.batches)
    assert 32 + 50 < texts <= 32 + 64
    labels = [batch["labels"] for batch in watching.batches if "labels" in batch]
    if family == "bert":
        assert 32 <= sum(len(one) for one in labels) < 32 + 16  # the last batch is filled with texts seen before
    else:
        assert sum(int((one != -100).any(1).sum()) for one in labels) == 32


def test_a_batch_tells_which_of_its_texts_have_labels(tmp_path):
    supplies = supplies_for(tiny("bert"), tmp_path)
    task, (first, second, *_) = supplies["task"], supplies["training_data"].examples
    bare = {name: value for name, value in second.items() if name != "labels"}
    batch = task.collate([bare, first, bare])
    assert batch["labelled"].tolist() == [False, True, False]
    assert batch["labels"].tolist() == [first["labels"]]
    assert set(task.collate([bare, bare])) == {"input_ids", "attention_mask", "token_type_ids"}
    assert "labelled" not in task.collate([first, second])


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "xlm-roberta", "llama"])
def test_every_task_makes_examples_of_texts_alone(family, tmp_path):
    task = supplies_for(tiny(family), tmp_path)["task"]
    texts = Dataset.from_dict({"review": [" ".join(f"w{at}" for at in range(20, 60))] * 2})
    examples = task.examples_of_texts(texts)
    assert ("labels" in examples[0]) == task.answers_tokens
    assert task.examples_of_texts(texts.select([])) == []


def test_learning_from_extra_texts_with_the_teacher_alone(tmp_path):
    model = tiny("bert")
    supplies = mixed(model, tmp_path)
    train = Train(epochs=1, batch_size=8, with_=(DistillLogits(),))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in supplies["teacher"].parameters():
            parameter.mul_(1.2)
    train.apply(model, **{name: supplies[name] for name in train.asks()})
    assert not torch.equal(before["classifier.weight"], model.classifier.weight)

"""A teacher reads a student's batches whatever vocabulary either has, or is refused with a reason."""

from __future__ import annotations

import pytest
import torch

from optimum_slim.techniques.distill.logits import DistillLogits
from optimum_slim.techniques.train import Train
from optimum_slim.training.teacher import Teacher, unlike, word_embeddings
from tests.contracts import supplies_for
from tests.tiny import SPECIAL, VOCABULARY, cut_vocabulary, tiny, tiny_config, tiny_tokenizer, token_batches

CPU = torch.device("cpu")
KEPT = [*range(len(SPECIAL)), *range(VOCABULARY - 1, 20, -3)]  # not in order


def batch(size):
    ids = torch.randint(len(SPECIAL), size, (3, 10), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize(
    ("family", "head"), [("roberta", None), ("bert", "ForMaskedLM"), ("llama", None), ("bert", None)]
)
def test_a_model_whose_vocabulary_is_cut_agrees_with_the_one_that_it_was(family, head):
    model = tiny(family, head)
    student, inputs = cut_vocabulary(model, KEPT), batch(len(KEPT))
    taught = Teacher(model, student.config, CPU).answers(inputs)
    torch.testing.assert_close(taught.logits, logits(student, inputs), rtol=1e-5, atol=1e-5)
    assert torch.equal(word_embeddings(model, student.config), student.get_input_embeddings().weight)


@pytest.mark.parametrize("padded", ["teacher", "student"])
def test_rows_that_pad_a_vocabulary_say_nothing(padded):
    models = {"teacher": tiny("llama"), "student": tiny("llama")}
    models[padded].resize_token_embeddings(VOCABULARY + 64, mean_resizing=False)
    inputs = token_batches()[1]
    taught = Teacher(models["teacher"], models["student"].config, CPU).answers(inputs)
    assert taught.logits.shape[-1] == VOCABULARY
    technique = DistillLogits()
    technique.begin(models["student"], None)
    loss = technique.loss(models["student"](**inputs), taught, inputs)
    assert loss.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"teacher_cache": True}], ids=["live", "cached"])
@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_a_model_with_fewer_tokens_learns_from_the_one_with_all(family, settings, tmp_path, monkeypatch):
    losses = []

    class Noted(DistillLogits):
        def loss(self, *outputs):
            losses.append(super().loss(*outputs))
            return losses[-1]

    teacher = tiny(family)
    student = cut_vocabulary(teacher, KEPT)
    supplies = supplies_for(teacher, tmp_path)
    for example in supplies["training_data"].examples:
        example["input_ids"] = [token % len(KEPT) for token in example["input_ids"]]
        example.pop("labels")
    train = Train(max_steps=2, batch_size=8, learning_rate=1e-9, with_=(Noted(),), **settings)
    train.apply(student, **{name: supplies[name] for name in train.asks()})
    assert torch.stack(losses).max() < 1e-4


def teachers():
    """Name: config and tokenizer of a teacher, those of the model, and what is told of them."""
    whole, cut = tiny_config("roberta"), cut_vocabulary(tiny("roberta"), KEPT).config
    words, kept = tiny_tokenizer("roberta"), tiny_tokenizer("roberta", kept=KEPT)
    other = tiny_tokenizer("roberta", kept=[*range(9), *range(VOCABULARY - 1, 8, -1)])
    padded = tiny_config("roberta", vocab_size=192)
    more = tiny_tokenizer("roberta", 140)
    two, six = tiny_config("bert"), tiny_config("bert", num_labels=6)
    return {
        "the same": (whole, words, whole, words, None),
        "one with all tokens": (whole, words, cut, kept, None),
        "one with rows that pad": (padded, words, whole, words, None),
        "a model with rows that pad": (whole, words, padded, words, None),
        "other words": (whole, other, whole, words, "118 of the model's tokens, e.g. 'w10', have another id there"),
        "other words in a cut one": (whole, other, cut, kept, "have another id there or none"),
        "more words": (padded, more, whole, words, "it answers with 12 tokens that the model lacks, e.g. 'w128'"),
        "fewer words": (whole, words, padded, more, "12 of the model's tokens, e.g. 'w128', have another id there"),
        "another task": (two, words, whole, words, "it does text-classification, the model fill-mask"),
        "more labels": (six, words, two, words, "it knows 6 labels, the model 2"),
    }  # fmt: skip


@pytest.mark.parametrize(("teacher", "its", "config", "tokenizer", "told"), teachers().values(), ids=teachers())
def test_who_cannot_teach_is_told_why(teacher, its, config, tokenizer, told):
    found = list(unlike(teacher, config, its, tokenizer))
    assert len(found) == (told is not None)
    assert told is None or told in found[0]

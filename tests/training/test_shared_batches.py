"""Processes that share each batch: losses, noise and weights are those of one process."""

from __future__ import annotations

import pytest
import torch

from optimum_slim import processes
from optimum_slim.model.sparsity import note_sparsity
from optimum_slim.tasks.task import IGNORED, pad_labels
from optimum_slim.techniques.distill.attentions import DistillAttentions
from optimum_slim.techniques.distill.hidden_states import DistillHiddenStates
from optimum_slim.techniques.distill.logits import DistillLogits
from optimum_slim.techniques.distill.relations import DistillRelations
from optimum_slim.techniques.sparsify.evolve import SparsifyEvolve
from optimum_slim.techniques.sparsify.gradual import SparsifyGradual
from optimum_slim.techniques.train import Train
from optimum_slim.training.batches import LikeLengths, TrainingData
from optimum_slim.training.losses import attention_error, relative_error, soft_classes
from optimum_slim.training.noise import swapped
from optimum_slim.training.trainer import losses
from tests.tiny import VOCABULARY, tiny, tiny_config, tiny_tokenizer, token_batches
from tests.together import together


@pytest.mark.parametrize(("texts", "size"), [(32, 8), (61, 8), (5, 8), (1000, 8)])
def test_every_batch_is_full_and_every_text_is_seen(texts, size):
    sampler = LikeLengths([index * 7 % 13 for index in range(texts)], size, seed=3)
    order = list(sampler)
    assert len(order) == len(sampler) == -(-texts // size) * size
    assert set(order) == set(range(texts))
    assert max(order.count(index) for index in range(texts)) <= -(-size // texts) + 1
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_noise_is_what_its_generator_draws():
    batch = token_batches([(4, 20)])[0]
    first, second, other = (
        swapped(batch, 0.5, (0, 1, 2), torch.Generator().manual_seed(seed))["input_ids"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal((first == 1), batch["input_ids"] == 1)


def part_of_the_losses(given):
    part = slice(processes.index() * 4 // processes.count(), (processes.index() + 1) * 4 // processes.count())
    student, teacher, mask, heads, other_heads = (one[part] for one in given)
    terms = (
        soft_classes(student, teacher, 2.0, mask),
        relative_error(student, teacher, mask),
        attention_error(heads, other_heads, mask),
    )
    return processes.mean(torch.stack(terms))


def test_means_over_tokens_are_those_of_the_whole_batch():
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 6, 5, generator=draw) for _ in range(2))
    heads, other_heads = (torch.rand(4, 2, 6, 6, generator=draw) for _ in range(2))
    mask = (torch.arange(6) < torch.tensor([6, 5, 3, 1])[:, None]).long()
    given = (student, teacher, mask, heads, other_heads)
    first, second = together(part_of_the_losses, given)
    torch.testing.assert_close(first, part_of_the_losses(given))
    assert torch.equal(first, second)


def collate(examples):
    """Pads texts of different lengths."""
    lengths = torch.tensor([len(one["input_ids"]) for one in examples])
    batch = {"attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long()}
    ids = pad_labels([one["input_ids"] for one in examples], int(lengths.max()), "right")
    return batch | {"input_ids": ids.masked_fill(ids == IGNORED, 1), "labels": ids}


def learned(family, head, settings, folder):
    """The losses of eleven steps, and the weights after them."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 20, (41,), generator=draw).tolist()
    data = TrainingData(
        [{"input_ids": torch.randint(5, VOCABULARY, (length,), generator=draw).tolist()} for length in lengths], collate
    )
    config = tiny_config(family, head)
    student, teacher = tiny(family, head), tiny(family, head, initializer_range=0.3).requires_grad_(False)
    technique = Train(batch_size=8, max_steps=11, learning_rate=1e-3, **settings)
    for name in ("model.layers.1.mlp.up_proj.weight",) if family == "llama" else ():
        student.get_parameter(name).data[:, ::2] = 0
        note_sparsity(student.config, [name], "unstructured")
    assert not list(technique.refusals(config, None))
    technique.apply(student, data, tiny_tokenizer(family), 5, folder, teacher)
    return losses(folder), student.state_dict()


ALL = (DistillLogits(), DistillHiddenStates(), DistillRelations(), DistillAttentions())
WAYS = {
    "labels of tokens": ("bert", "ForMaskedLM", {"labels": 1.0}),
    "the next token": ("llama", None, {"labels": 1.0, "with_": (DistillLogits(),)}),
    "all of a teacher, with noise": ("bert", "ForMaskedLM", {"noise": 0.3, "with_": ALL}),
    "zeros that grow": ("llama", None, {"labels": 1.0, "with_": (SparsifyGradual(every=2),)}),
    "zeros that move": (
        "llama",
        None,
        {"labels": 1.0, "with_": (SparsifyEvolve(start="random", ratio=0.5, grow="random", every=3),)},
    ),
}


SHOWN = ("all of a teacher, with noise", "zeros that grow")


@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way in SHOWN else pytest.mark.slow) for way in WAYS])
def test_two_processes_lose_what_one_does_and_end_with_the_same_weights(way, tmp_path):
    alone, weights = learned(*WAYS[way], tmp_path / "alone")
    (first, ours), (second, theirs) = together(learned, *WAYS[way], tmp_path / "together")
    assert len(alone) == 11
    assert first == second == pytest.approx(alone, rel=1e-4)
    assert all(torch.equal(ours[name], theirs[name]) for name in weights)
    assert all(torch.equal(ours[name] == 0, weights[name] == 0) for name in weights)


def test_a_batch_that_cannot_be_shared_equally_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    technique = Train(batch_size=32, labels=1.0)
    assert list(technique.refusals(tiny_config("bert"), None)) == [
        "batch_size: 3 processes cannot share 32 equally; give a multiple, e.g. 33"
    ]

"""Each layer's attention learns from one of the teacher's, head by head or all heads together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from optimum_slim.techniques.distill.attentions import DISTANCES, DistillAttentions
from tests.tiny import tiny_config

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
BATCH = {"attention_mask": MASK}


def attentions(layers, seed, heads=4):
    """Probabilities as a model gives them: none for padding."""
    draw = torch.Generator().manual_seed(seed)
    scores = [torch.randn(2, heads, 3, 3, generator=draw) for _ in range(layers)]
    padding = MASK[:, None, None, :] == 0
    return SimpleNamespace(attentions=tuple(one.masked_fill(padding, -torch.inf).softmax(-1) for one in scores))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("layers", "student", "teacher", "pairs"),
    [
        (None, 2, 4, [(1, 2), (2, 4)]),
        (None, 3, 3, [(1, 1), (2, 2), (3, 3)]),
        (None, 4, 2, [(1, 1), (2, 1), (3, 1), (4, 2)]),
        ({2: 3}, 2, 4, [(2, 3)]),
    ],
)
def test_the_loss_is_the_mean_over_pairs_of_layers(distance, layers, student, teacher, pairs):
    ours, theirs = attentions(student, seed=0), attentions(teacher, seed=1)
    wanted = [DISTANCES[distance](ours.attentions[a - 1], theirs.attentions[b - 1], MASK) for a, b in pairs]
    loss = DistillAttentions(weight=3.0, layers=layers, distance=distance).loss(ours, theirs, BATCH)
    assert loss.item() == pytest.approx(3.0 * torch.stack(wanted).mean().item(), rel=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_heads_of_another_number_are_compared_by_their_means(distance):
    ours, theirs = attentions(2, seed=0, heads=4), attentions(2, seed=1, heads=6)
    means = [
        SimpleNamespace(attentions=[one.mean(1, keepdim=True) for one in some.attentions]) for some in (ours, theirs)
    ]
    technique = DistillAttentions(distance=distance)
    assert technique.loss(ours, theirs, BATCH) == technique.loss(*means, BATCH) > 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_student_that_looks_where_its_teacher_looks_has_no_loss(distance):
    one = attentions(3, seed=0)
    assert DistillAttentions(distance=distance).loss(one, one, BATCH) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_weight_that_teaches_nothing_is_a_mistake(weight):
    assert list(DistillAttentions(weight=weight).mistakes()) == [f"weight must be above 0, not {weight}"]


def test_the_embeddings_attend_to_nothing():
    config = tiny_config("bert")
    assert not list(DistillAttentions(layers={1: 3}).refusals(config, config))
    told = "layers: {0: 0} is not there; the model has layers 1 to 3, its teacher 1 to 3"
    assert list(DistillAttentions(layers={0: 0}).refusals(config, config)) == [told]

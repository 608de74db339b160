"""A student's layers are spread over the teacher's, and each learns from its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from optimum_slim.techniques.distill.hidden_states import DistillHiddenStates, spread
from optimum_slim.training.losses import relative_error

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def states(layers, seed):
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(hidden_states=tuple(torch.randn(2, 3, 8, generator=generator) for _ in range(layers + 1)))


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (3, 3, {0: 0, 1: 1, 2: 2, 3: 3}),
        (3, 6, {0: 0, 1: 2, 2: 4, 3: 6}),
        (4, 6, {0: 0, 1: 1, 2: 3, 3: 4, 4: 6}),
        (1, 12, {0: 0, 1: 12}),
        (6, 3, {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3}),
    ],
)
def test_layers_are_spread_so_that_first_follows_first_and_last_follows_last(student, teacher, pairs):
    assert spread(student, teacher) == pairs


def test_the_loss_is_the_mean_error_over_the_students_layers():
    student, teacher = states(2, seed=0), states(4, seed=1)
    pairs = [(0, 0), (1, 2), (2, 4)]
    errors = [relative_error(student.hidden_states[a], teacher.hidden_states[b], MASK).item() for a, b in pairs]
    loss = DistillHiddenStates(weight=3.0).loss(student, teacher, {"attention_mask": MASK})
    assert loss.item() == pytest.approx(3.0 * sum(errors) / 3, rel=1e-5)


def test_only_the_listed_layers_learn():
    student, teacher = states(2, seed=0), states(4, seed=1)
    wanted = relative_error(student.hidden_states[2], teacher.hidden_states[3], MASK)
    loss = DistillHiddenStates(layers={2: 3}).loss(student, teacher, {"attention_mask": MASK})
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_student_that_says_what_its_teacher_says_has_no_loss():
    teacher = states(4, seed=1)
    student = SimpleNamespace(hidden_states=teacher.hidden_states[::2])
    assert DistillHiddenStates().loss(student, teacher, {"attention_mask": MASK}) == 0


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_weight_that_teaches_nothing_is_a_mistake(weight):
    assert list(DistillHiddenStates(weight=weight).mistakes()) == [f"weight must be above 0, not {weight}"]

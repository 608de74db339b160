"""Each layer of the student learns from one of the teacher's, through a projection where widths differ."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from optimum_slim.techniques.distill.hidden_states import DistillHiddenStates
from optimum_slim.training.losses import relative_error
from tests.tiny import tiny, tiny_config

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def states(layers, seed, width=8):
    draw = torch.Generator().manual_seed(seed)
    return SimpleNamespace(hidden_states=tuple(torch.randn(2, 3, width, generator=draw) for _ in range(layers + 1)))


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


def test_equal_widths_are_compared_as_they_are():
    technique = DistillHiddenStates()
    technique.begin(tiny("bert"), tiny("bert"))
    assert not list(technique.parameters())
    assert not technique.state()


def test_a_teacher_of_another_width_is_met_by_one_projection_of_all_layers():
    technique = DistillHiddenStates()
    technique.begin(tiny("bert"), tiny("bert", hidden_size=96))
    (weight,) = technique.parameters()
    student, teacher = states(2, seed=0, width=64), states(4, seed=1, width=96)
    pairs = [(0, 0), (1, 2), (2, 4)]
    wanted = [relative_error(student.hidden_states[a] @ weight.T, teacher.hidden_states[b], MASK) for a, b in pairs]
    loss = technique.loss(student, teacher, {"attention_mask": MASK})
    assert loss.item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-5)
    technique.end(tiny("bert"))
    assert isinstance(technique.projection, nn.Identity)


def test_the_projection_is_taken_up_again_from_its_state():
    model, teacher = tiny("bert"), tiny("bert", hidden_size=96)
    first, second = DistillHiddenStates(), DistillHiddenStates()
    for technique in (first, second):
        technique.begin(model, teacher)
    assert not torch.equal(*first.parameters(), *second.parameters())
    second.load_state(first.state())
    assert torch.equal(*first.parameters(), *second.parameters())


def test_another_width_is_no_hindrance():
    assert not list(DistillHiddenStates().refusals(tiny_config("bert"), tiny_config("bert", hidden_size=96)))


def test_a_last_layer_of_a_width_of_its_own_fits_no_projection():
    narrow = tiny_config("opt", hidden_size=96)  # its outputs have 64 values
    assert not list(DistillHiddenStates().refusals(narrow, narrow))
    assert "fits a last layer of 64" in " ".join(DistillHiddenStates().refusals(tiny_config("opt"), narrow))

"""Losses are the formulas that they cite: zero at equality, finite at the extremes."""

from __future__ import annotations

import pytest
import torch

from optimum_slim.training.losses import masked_mean, relative_error, soft_classes, soft_labels

MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])


def logits(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_soft_classes_are_the_divergence_of_softened_probabilities(temperature):
    student, teacher = logits(7, 4), logits(7, 4, seed=1)
    p, q = (torch.softmax(one.double() / temperature, -1) for one in (teacher, student))
    wanted = (p * (p.log() - q.log())).sum(-1).mean() * temperature**2
    assert soft_classes(student, teacher, temperature) == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_soft_labels_are_the_divergence_of_each_label_by_itself(temperature):
    student, teacher = logits(7, 4), logits(7, 4, seed=1)
    p, q = (torch.sigmoid(one.double() / temperature) for one in (teacher, student))
    wanted = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean() * temperature**2
    assert soft_labels(student, teacher, temperature) == pytest.approx(wanted.item(), rel=1e-3)


def test_two_classes_and_one_label_say_the_same():
    student, teacher = logits(9, 1), logits(9, 1, seed=1)
    pairs = [torch.cat([torch.zeros_like(one), one], dim=1) for one in (student, teacher)]
    assert soft_classes(*pairs, 1.0) == pytest.approx(soft_labels(student, teacher, 1.0).item(), rel=1e-3)


def test_soft_classes_of_tokens_pass_over_padding():
    student, teacher = logits(2, 5, 4), logits(2, 5, 4, seed=1)
    real = MASK.bool()
    wanted = soft_classes(student[real], teacher[real], 2.0)
    assert soft_classes(student, teacher, 2.0, MASK) == pytest.approx(wanted.item(), rel=1e-5)


def test_gradients_keep_their_size_as_temperature_rises():
    sizes = []
    for temperature in (4.0, 8.0):
        student = logits(50, 4, scale=0.1).requires_grad_()
        soft_classes(student, logits(50, 4, seed=1, scale=0.1), temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_relative_error_is_a_share_of_the_teachers_size():
    teacher, student = logits(2, 5, 8), logits(2, 5, 8, seed=1)
    real = MASK.bool()
    wanted = (student - teacher)[real].square().sum() / teacher[real].square().sum()
    assert relative_error(student, teacher, MASK) == pytest.approx(wanted.item(), rel=1e-5)
    assert relative_error(torch.zeros_like(teacher), teacher, MASK) == pytest.approx(1.0)
    student[~real] = 1e6
    assert relative_error(student, teacher, MASK) == pytest.approx(wanted.item(), rel=1e-5)


def test_the_masked_mean_is_of_what_the_mask_keeps():
    values = torch.arange(10.0).view(2, 5)
    assert masked_mean(values, None) == 4.5
    assert masked_mean(values, MASK) == pytest.approx((0 + 1 + 2 + 3 + 5 + 6) / 6)


LOSSES = {
    "soft classes": lambda student, teacher: soft_classes(student, teacher, 2.0),
    "soft classes of tokens": lambda student, teacher: soft_classes(student, teacher, 2.0, torch.ones(6)),
    "soft labels": lambda student, teacher: soft_labels(student, teacher, 2.0),
    "relative error": lambda student, teacher: relative_error(student[None], teacher[None], torch.ones(1, 6)),
}


@pytest.mark.parametrize("loss", [pytest.param(one, id=name) for name, one in LOSSES.items()])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_losses_are_zero_at_equality_and_above_it_elsewhere(loss, scale):
    student, teacher = logits(6, 4, scale=scale), logits(6, 4, seed=1, scale=scale)
    assert loss(teacher, teacher) == pytest.approx(0.0, abs=1e-5)
    assert loss(student, teacher) > 1e-5


@pytest.mark.parametrize("loss", [pytest.param(one, id=name) for name, one in LOSSES.items()])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_at_any_size_of_logits(loss, scale, dtype):
    student = logits(6, 4, scale=scale).to(dtype).requires_grad_()
    value = loss(student, logits(6, 4, seed=1, scale=scale).to(dtype))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0

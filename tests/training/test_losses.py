"""Losses are the formulas that they cite: zero at equality, finite at the extremes."""

from __future__ import annotations

import math

import pytest
import torch

from optimum_slim.training.losses import (
    TopLogits,
    attention_divergence,
    attention_error,
    masked_mean,
    relation_loss,
    relative_error,
    soft_classes,
    soft_labels,
    soft_top_classes,
)

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


def top_of(teacher, k, temperature):
    """The k largest logits of a teacher, and all others as one sum."""
    shifted = teacher - teacher.amax(-1, keepdim=True)
    values, ids = shifted.topk(k, dim=-1)
    rest = (shifted.scatter(-1, ids, -torch.inf) / temperature).logsumexp(-1)
    return TopLogits(ids, values, {temperature: rest}, teacher.shape[-1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_all_classes_are_their_own_top(temperature):
    student, teacher = logits(2, 5, 12), logits(2, 5, 12, seed=1)
    whole = soft_classes(student, teacher, temperature, MASK)
    found = soft_top_classes(student, top_of(teacher, 12, temperature), temperature, MASK)
    assert found.item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("k", [1, 3, 11])
def test_the_top_of_the_classes_loses_the_divergence_among_the_others_and_no_more(k, temperature):
    student, teacher = logits(7, 12), logits(7, 12, seed=1)
    p, q = (torch.softmax(one.double() / temperature, -1) for one in (teacher, student))
    others = torch.ones_like(p).scatter(-1, teacher.topk(k, dim=-1).indices, 0.0)
    rest, its = (p * others).sum(-1), (q * others).sum(-1)
    within = (others * p / rest[:, None] * (p / q / (rest / its)[:, None]).log()).sum(-1)
    lost = (rest * within).mean().item() * temperature**2
    whole = soft_classes(student, teacher, temperature).item()
    found = soft_top_classes(student, top_of(teacher, k, temperature), temperature).item()
    assert found == pytest.approx(whole - lost, rel=1e-3, abs=1e-4)
    assert found <= whole + 1e-5


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


def relations_by_hand(vectors, heads, text, head, real):
    """One relation head of one text: row t is the softmax of a_t . a_u / sqrt(d) over the real tokens u."""
    size = vectors.shape[-1] // heads
    part = vectors[text, :, head * size : (head + 1) * size].double()
    rows = []
    for token in real:
        powers = [math.exp(part[token] @ part[other] / math.sqrt(size)) for other in real]
        rows.append([power / sum(powers) for power in powers])
    return rows


def relation_loss_by_hand(student, teacher, heads, mask):
    """1 / (A |x|) * the sum over heads and tokens of KL(teacher || student), averaged over texts."""
    texts = []
    for text in range(len(student)):
        real = mask[text].nonzero().flatten().tolist()
        total = 0.0
        for head in range(heads):
            ours, theirs = (relations_by_hand(one, heads, text, head, real) for one in (student, teacher))
            for q_row, p_row in zip(ours, theirs, strict=True):
                total += sum(p * math.log(p / q) for p, q in zip(p_row, q_row, strict=True))
        texts.append(total / (heads * len(real)))
    return sum(texts) / len(texts)


@pytest.mark.parametrize(("ours", "theirs"), [(12, 12), (12, 24), (24, 6)])
@pytest.mark.parametrize("heads", [1, 3, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_the_relation_loss_is_the_formula_of_the_paper(ours, theirs, heads, masked):
    student, teacher = logits(2, 5, ours, scale=1.5), logits(2, 5, theirs, seed=1, scale=1.5)
    given = (MASK,) if masked else ()
    wanted = relation_loss_by_hand(student, teacher, heads, MASK if masked else torch.ones(2, 5))
    assert relation_loss(student, teacher, heads, *given).item() == pytest.approx(wanted, rel=1e-4)


def test_what_stands_at_padding_does_not_matter():
    student, teacher = logits(2, 5, 12), logits(2, 5, 24, seed=1)
    probabilities = [logits(2, 3, 5, 5, seed=seed).softmax(-1) for seed in (2, 3)]
    losses = (relation_loss(student, teacher, 3, MASK), attention_error(*probabilities, MASK))
    hidden = MASK == 0
    for one in (student, teacher):
        one[hidden] = 1e4
    for one in probabilities:
        one.masked_fill_(hidden[:, None, :, None] | hidden[:, None, None, :], 0.5)
    assert (relation_loss(student, teacher, 3, MASK), attention_error(*probabilities, MASK)) == losses


def test_relations_do_not_tell_turned_vectors_apart():
    teacher = logits(2, 5, 8)
    turn, _ = torch.linalg.qr(logits(8, 8, seed=1))
    assert relation_loss(teacher @ turn, teacher, 1) == pytest.approx(0.0, abs=1e-5)
    assert relation_loss(teacher @ turn, teacher, 4) > 1e-2


def test_the_attention_error_is_the_mean_square_over_pairs_of_real_tokens():
    student, teacher = (logits(2, 3, 5, 5, seed=seed).softmax(-1) for seed in (0, 1))
    assert attention_error(student, teacher, torch.ones(2, 5)).item() == pytest.approx(
        torch.nn.functional.mse_loss(student, teacher).item(), rel=1e-5
    )
    squares = (student - teacher).square()
    wanted = (squares[0, :, :4, :4].sum() + squares[1, :, :2, :2].sum()) / (3 * (16 + 4))
    assert attention_error(student, teacher, MASK) == pytest.approx(wanted.item(), rel=1e-5)


def test_the_attention_divergence_is_a_mean_over_texts_heads_and_real_tokens():
    scores = [logits(2, 3, 5, 5, seed=seed) for seed in (0, 1)]
    scores = [one.masked_fill(MASK[:, None, None, :] == 0, -torch.inf) for one in scores]
    student, teacher = (one.softmax(-1) for one in scores)
    rows = torch.xlogy(teacher, teacher / student.clamp(min=1e-9)).sum(-1)
    wanted = (rows[0, :, :4].mean() + rows[1, :, :2].mean()) / 2
    assert attention_divergence(student, teacher, MASK) == pytest.approx(wanted.item(), rel=1e-4)


def test_the_masked_mean_is_of_what_the_mask_keeps():
    values = torch.arange(10.0).view(2, 5)
    assert masked_mean(values, None) == 4.5
    assert masked_mean(values, MASK) == pytest.approx((0 + 1 + 2 + 3 + 5 + 6) / 6)


LOSSES = {
    "soft classes": lambda student, teacher: soft_classes(student, teacher, 2.0),
    "soft top classes": lambda student, teacher: soft_top_classes(student, top_of(teacher.float(), 2, 2.0), 2.0),
    "soft classes of tokens": lambda student, teacher: soft_classes(student, teacher, 2.0, torch.ones(6)),
    "soft labels": lambda student, teacher: soft_labels(student, teacher, 2.0),
    "relative error": lambda student, teacher: relative_error(student[None], teacher[None], torch.ones(1, 6)),
    "relations": lambda student, teacher: relation_loss(student[None], teacher[None], 2),
    "relations of real tokens": lambda student, teacher: relation_loss(
        student[None], teacher[None], 2, torch.tensor([[1, 1, 1, 1, 0, 0]])
    ),
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

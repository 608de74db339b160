"""Losses by which a student follows its teacher, as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def soft_classes(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """KL(teacher || student) of softened class probabilities, times temperature squared (Hinton et al.,
    arXiv:1503.02531, section 2), averaged over rows.

    Args:
        student, teacher: logits [..., classes], any float type; computed in float32.
        temperature: above 0.
        mask: [...], the rows that count; all without it.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    rows = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(-1)
    return masked_mean(rows, mask) * temperature**2


def soft_labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The same for labels that exclude nothing: binary cross entropy to softened teacher probabilities, times
    temperature squared, less the teacher's own entropy. Logits [batch, labels]."""
    target = torch.sigmoid(teacher.float() / temperature)
    cross = F.binary_cross_entropy_with_logits(student.float() / temperature, target)
    own = F.binary_cross_entropy(target, target)
    return (cross - own) * temperature**2


def relative_error(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """|student - teacher|^2 / |teacher|^2 over real tokens: 0 is equal, 1 as bad as all zeros.

    Args:
        student, teacher: [batch, tokens, hidden]. mask: [batch, tokens].
    """
    real = mask.bool()
    difference, size = (student.float() - teacher.float())[real], teacher.float()[real]
    return difference.square().sum() / size.square().sum()


def masked_mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of the values that a mask of the same shape keeps; of all without one."""
    if mask is None:
        return rows.mean()
    weights = mask.to(rows)
    return (rows * weights).sum() / weights.sum()

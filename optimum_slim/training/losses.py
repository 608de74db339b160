"""Losses by which a student follows its teacher, as pure functions of tensors.

Several processes each see a part of a batch and average their gradients. What is divided by a count of tokens is
therefore divided by the mean of the counts of all: then the average is the loss of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from optimum_slim import processes


@dataclass(frozen=True)
class TopLogits:
    """A teacher's largest logits, and the others as one sum: what is left of its logits in a cache."""

    ids: Tensor  # int64 [..., k], the classes
    values: Tensor  # float32 [..., k], their logits less the largest
    rest: Mapping[float, Tensor]  # by temperature log(sum of exp(z / temperature)) over all others, [...], as `values`
    classes: int  # of how many


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


def soft_top_classes(student: Tensor, teacher: TopLogits, temperature: float, mask: Tensor | None = None) -> Tensor:
    """`soft_classes` of a teacher whose largest k logits are known one by one, and all others as one class more:

        L_k = sum over the k of p_i log(p_i / q_i) + p_rest log(p_rest / q_rest),   p_rest = 1 - sum of the k's p_i,

    with p and q the teacher's and student's probabilities at the temperature, and q_rest all that the student gives to
    classes beyond the k. By the chain rule of KL the whole loss is L_k + p_rest KL(p / p_rest || q / q_rest) over the
    others: nothing is lost for k = classes, else how the others compare with each other, which weighs as much as they
    do together. So L_k never exceeds the whole, is 0 where the two agree, and misses at most p_rest max |log(p / q) -
    log(p_rest / q_rest)|. Measured on a decoder of 4,096 tokens at k = 48: at temperature 1 the others have .25 of the
    mass, and the gradient's cosine to that of the whole loss is .99; at 2 they have .78, and it is .8; at 4 it is .5.
    Of the same size, samples of the others (arXiv:2503.16870), which miss nothing on average, did no better at 1 and
    worse at 2.

    Args:
        student: logits [..., classes], any float type; computed in float32.
        teacher: with the sum of the others at this temperature. temperature, mask: as for `soft_classes`.
    """
    scaled = student.float() / temperature
    ours, theirs = scaled.gather(-1, teacher.ids), teacher.values / temperature
    if teacher.ids.shape[-1] < teacher.classes:
        others = scaled.scatter(-1, teacher.ids, -torch.inf).logsumexp(-1, keepdim=True)
        ours = torch.cat([ours, others], dim=-1)
        theirs = torch.cat([theirs, teacher.rest[temperature].unsqueeze(-1)], dim=-1)
    rows = F.kl_div(F.log_softmax(ours, -1), F.log_softmax(theirs, -1), log_target=True, reduction="none").sum(-1)
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
    return difference.square().sum() / processes.mean(size.square().sum())


def relation_loss(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """KL(teacher || student) of self-attention relations: how alike the vectors of a text's tokens are to each other,
    softmax(A A^T / sqrt(d)) in each relation head of d values (MiniLM, arXiv:2002.10957, eq. 6 and 7, there of values;
    MiniLMv2, arXiv:2012.15828, section 3.1). Averaged over texts, relation heads and a text's tokens.

    Args:
        student, teacher: queries, keys or values [batch, tokens, width], each of its own width.
        heads: relation heads; divides both widths.
        mask: [batch, tokens], 1 where a token is real: others neither count nor get a share.
    """
    ours, theirs = _log_relations(student, heads, mask), _log_relations(teacher, heads, mask)
    return _mean_of_texts(F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1), mask)


def attention_error(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of attention probabilities over pairs of real tokens (after TinyBERT, arXiv:1909.10351, eq. 7,
    which compares them before the softmax).

    Args:
        student, teacher: [batch, heads, tokens, tokens]. mask: [batch, tokens].
    """
    squares = (student.float() - teacher.float()).square()
    real = mask.bool()
    return masked_mean(squares, (real[:, None, :, None] & real[:, None, None, :]).expand_as(squares))


def attention_divergence(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher || student) of attention probabilities, averaged over texts, heads and a text's tokens (MiniLM,
    arXiv:2002.10957, eq. 5).

    Args:
        student, teacher: [batch, heads, tokens, tokens], rows that sum to 1; padding has no share.
        mask: [batch, tokens].
    """
    # A probability may have vanished where the teacher's has not; what 1 / p makes of it must stay finite, too.
    log_student = student.float().clamp(min=1e-20).log()
    return _mean_of_texts(F.kl_div(log_student, teacher.float(), reduction="none").sum(-1), mask)


def masked_mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of the values that a mask of the same shape keeps; of all without one."""
    if mask is None:
        return rows.mean()
    weights = mask.to(rows)
    return (rows * weights).sum() / processes.mean(weights.sum())


def _log_relations(vectors: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Log probabilities [batch, heads, tokens, tokens] of vectors [batch, tokens, width]."""
    split = vectors.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.mT / split.shape[-1] ** 0.5
    if mask is not None:
        # Not -inf: the difference of two such is no number.
        scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
    return F.log_softmax(scores, dim=-1)


def _mean_of_texts(rows: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over texts of each text's mean over heads and real tokens; rows [batch, heads, tokens]."""
    if mask is None:
        return rows.mean()
    weights = mask.to(rows)
    return ((rows.mean(1) * weights).sum(-1) / weights.sum(-1)).mean()

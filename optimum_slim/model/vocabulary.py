"""Which token of a teacher each token of a student is: the same one, one that a smaller vocabulary kept, or none."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

from optimum_slim.errors import ModelError


def kept_tokens_in(config: PretrainedConfig) -> list[int] | None:
    """The original id of each token that a smaller vocabulary kept (`slim.kept_tokens`), in the order of the new ids;
    None where the vocabulary is the original one.

    Raises:
        ModelError: it is no list of `vocab_size` different ids.
    """
    slim = getattr(config, "slim", None) or {}
    kept = slim.get("kept_tokens") if isinstance(slim, dict) else None
    if kept is None:
        return None
    ids = isinstance(kept, list) and all(type(one) is int and one >= 0 for one in kept)
    if not ids or len(set(kept)) != len(kept) or len(kept) != config.vocab_size:
        raise ModelError(
            f"config.json: slim.kept_tokens must list {config.vocab_size} different ids, one for each token"
        )
    return kept


def teacher_tokens(student: PretrainedConfig, teacher: PretrainedConfig) -> Tensor | None:
    """The teacher's id of each of the student's tokens: the teacher is fed `found[input_ids]`, and its logits are read
    at `found`, which are then those of the student's first `len(found)` tokens.

    Vocabularies of unlike sizes with the original ids differ by rows that pad a matrix to a round size: no token of the
    tokenizer stands for them, so the smaller number counts. Which ids mean the same token only tokenizers can tell.

    Returns:
        int64 [tokens], as many as both know; None where the ids are the same throughout.

    Raises:
        ModelError: the student kept a token that the teacher lacks.
    """
    ours, theirs = kept_tokens_in(student), kept_tokens_in(teacher)
    if ours == theirs:
        same = student.vocab_size == teacher.vocab_size
        return None if same else torch.arange(min(student.vocab_size, teacher.vocab_size))
    wanted = range(student.vocab_size) if ours is None else ours
    places = {token: at for at, token in enumerate(range(teacher.vocab_size) if theirs is None else theirs)}
    lacking = [token for token in wanted if token not in places]
    if lacking:
        raise ModelError(
            f"teacher: it lacks {len(lacking)} of the model's tokens, e.g. the one whose id was {lacking[0]}"
        )
    return torch.tensor([places[token] for token in wanted])

"""What a teacher answers about a student's batch, whatever vocabulary each of them has; and who cannot teach whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from optimum_slim.model.vocabulary import kept_tokens_in, teacher_tokens
from optimum_slim.tasks import task_named


class Teacher:
    """A frozen model that reads a student's batches: token ids go in, and logits over the vocabulary come out, as the
    student counts them.

    Args:
        model: it stands on `device` already. student: the config of who learns.
    """

    def __init__(self, model: PreTrainedModel, student: PretrainedConfig, device: torch.device):
        self.model = model.eval()
        found = teacher_tokens(student, model.config)
        self.tokens = found if found is None else found.to(device)
        self.answers_tokens = task_named("auto", student).answers_tokens

    @torch.no_grad()
    def answers(self, inputs: Mapping[str, Tensor], **wanted: bool) -> Any:
        """The model's outputs on a batch without labels; `wanted` are outputs besides, e.g. output_hidden_states."""
        if self.tokens is None:
            return self.model(**inputs, **wanted)
        outputs = self.model(**{**inputs, "input_ids": self.tokens[inputs["input_ids"]]}, **wanted)
        if self.answers_tokens:
            outputs.logits = outputs.logits[..., self.tokens]
        return outputs


def word_embeddings(teacher: PreTrainedModel, student: PretrainedConfig) -> Tensor:
    """The teacher's embeddings of the student's tokens, float [tokens, hidden]."""
    table: Any = teacher.get_input_embeddings()
    rows = table.weight.detach()
    found = teacher_tokens(student, teacher.config)
    return rows if found is None else rows[found.to(rows.device)]


def unlike(
    teacher: PretrainedConfig,
    config: PretrainedConfig,
    its_tokenizer: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[str]:
    """Why a teacher cannot teach a model, if so, in words for the user: it must do the same task, give as many answers,
    and know every token of the model's tokenizer under the id at which it is asked.

    Raises:
        ModelError: `slim.kept_tokens` of one of them makes no sense, or the teacher lacks a token that it lists.
    """
    task, wanted = task_named("auto", teacher), task_named("auto", config)
    if task is not wanted:
        yield f"teacher: it does {task.name}, the model {wanted.name}"
        return
    if teacher.num_labels != config.num_labels:
        yield f"teacher: it knows {teacher.num_labels} labels, the model {config.num_labels}"
    found = teacher_tokens(config, teacher)
    known = its_tokenizer.get_vocab()
    ids = range(config.vocab_size) if found is None else found.tolist()
    # Ids beyond the embeddings can be asked of neither; those beyond what both have, of the model alone.
    other = [token for token, at in tokenizer.get_vocab().items() if at < config.vocab_size
             and (at >= len(ids) or known.get(token) != ids[at])]  # fmt: skip
    if other:
        yield (
            f"teacher: its vocabulary is another one: {len(other)} of the model's tokens, e.g. {min(other)!r}, have "
            "another id there or none; choose a teacher with the same tokenizer"
        )
        return
    padded = task.answers_tokens and kept_tokens_in(config) == kept_tokens_in(teacher)
    spare = [token for token, at in known.items() if len(ids) <= at < teacher.vocab_size] if padded else []
    if spare:
        yield (
            f"teacher: it answers with {len(spare)} tokens that the model lacks, e.g. {min(spare)!r}; choose a teacher "
            "with the same tokenizer"
        )

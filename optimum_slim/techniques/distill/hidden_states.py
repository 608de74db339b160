"""Distill hidden states: each layer of the student learns to say what a layer of the teacher says (TinyBERT, 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from optimum_slim.training.losses import relative_error
from optimum_slim.training.trained import Batch, Trained


@dataclass
class DistillHiddenStates(Trained):
    """Relative squared error of hidden states, averaged over the student's layers (after TinyBERT, arXiv:1909.10351,
    eq. 8). The embeddings' output counts as layer 0; without `layers` the student's are spread over the teacher's so
    that the last follows the last.

    - distill.hidden_states: {weight: 1}
    """

    needs = ("hidden_states",)
    needs_teacher = True

    weight: float = 1.0  # of this term in the loss
    layers: dict[int, int] | None = None  # the teacher's layer for each of the student's, e.g. {3: 6}

    def mistakes(self) -> Iterator[str]:
        if self.weight <= 0:
            yield f"weight must be above 0, not {self.weight}"

    def refusals(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        if config.hidden_size != teacher.hidden_size:
            yield f"the teacher's hidden states have {teacher.hidden_size} values, the model's {config.hidden_size}"
        for layer, followed in (self.layers or {}).items():
            if not 0 <= layer <= config.num_hidden_layers or not 0 <= followed <= teacher.num_hidden_layers:
                yield (
                    f"layers: {{{layer}: {followed}}} is not there; the model has layers 0 to "
                    f"{config.num_hidden_layers}, its teacher 0 to {teacher.num_hidden_layers}"
                )

    def loss(self, student: Any, teacher: Any, batch: Batch) -> Tensor | None:
        ours, theirs = student.hidden_states, teacher.hidden_states
        pairs = self.layers or spread(len(ours) - 1, len(theirs) - 1)
        errors = [relative_error(ours[a], theirs[b], batch["attention_mask"]) for a, b in pairs.items()]
        return self.weight * torch.stack(errors).mean()


def spread(student: int, teacher: int) -> dict[int, int]:
    """The teacher's layer that each of the student's follows, 0 being the embeddings: {0: 0, 1: 2, 2: 4, 3: 6}."""
    return {layer: layer * teacher // student for layer in range(student + 1)}

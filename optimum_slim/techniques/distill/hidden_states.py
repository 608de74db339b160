"""Distill hidden states: each layer of the student learns to say what a layer of the teacher says (TinyBERT, 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim import processes
from optimum_slim.training.layers import absent, spread
from optimum_slim.training.losses import relative_error
from optimum_slim.training.trained import Batch, Taught


@dataclass
class DistillHiddenStates(Taught):
    """Relative squared error of hidden states, averaged over the student's layers (after TinyBERT, arXiv:1909.10351,
    eq. 8). The embeddings' output counts as layer 0; without `layers` the student's are spread over the teacher's so
    that the last follows the last. A teacher of another width is met by a linear map (W_h of eq. 8), one for all
    layers, which learns with the student and is gone after the pass.

    - distill.hidden_states: {weight: 1}
    """

    needs = ("hidden_states",)

    weight: float = 1.0  # of this term in the loss
    layers: dict[int, int] | None = None  # the teacher's layer for each of the student's, e.g. {3: 6}

    def refusals(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        yield from absent(self.layers or {}, 0, config.num_hidden_layers, teacher.num_hidden_layers)
        if config.hidden_size == teacher.hidden_size:
            return
        if processes.sharded():
            yield "a teacher of another width is met by a projection, which cannot learn beside weights spread by FSDP"
        for one in (config, teacher):
            last = getattr(one, "word_embed_proj_dim", one.hidden_size)  # opt's, where it differs
            if last != one.hidden_size:
                yield (
                    f"the teacher's hidden states have {teacher.hidden_size} values, the model's {config.hidden_size}, "
                    f"and no one projection fits a last layer of {last}"
                )

    def __post_init__(self) -> None:
        self.projection: nn.Module = nn.Identity()

    def begin(self, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        ours, theirs = model.config.hidden_size, (teacher or model).config.hidden_size
        if ours != theirs:
            self.projection = nn.Linear(ours, theirs, bias=False, device=model.device)

    def parameters(self) -> Iterable[nn.Parameter]:
        return self.projection.parameters()

    def loss(self, student: Any, teacher: Any, batch: Batch) -> Tensor | None:
        ours, theirs, mask = student.hidden_states, teacher.hidden_states, batch["attention_mask"]
        pairs = self.layers or spread(len(ours) - 1, len(theirs) - 1)
        errors = [relative_error(self.projection(ours[a]), theirs[b], mask) for a, b in pairs.items()]
        return self.weight * torch.stack(errors).mean()

    def end(self, model: PreTrainedModel) -> None:
        self.projection = nn.Identity()

    def state(self) -> dict[str, Any]:
        return self.projection.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self.projection.load_state_dict(state)

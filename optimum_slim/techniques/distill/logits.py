"""Distill logits: the student learns the teacher's answers, with how sure it is of each (Hinton, 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.tasks import FeatureExtraction, task_named
from optimum_slim.training.losses import soft_classes, soft_labels
from optimum_slim.training.trained import Batch, Taught


@dataclass
class DistillLogits(Taught):
    """KL divergence to the teacher's softened probabilities (arXiv:1503.02531, section 2); for models with one output
    the squared error, for several labels at once the binary form.

    - distill.logits: {temperature: 2, weight: 4}
    """

    temperature: float = 2.0  # above 1 shows more of the unlikely answers
    weight: float = 1.0  # of this term in the loss

    def mistakes(self) -> Iterator[str]:
        if self.temperature <= 0:
            yield f"temperature must be above 0, not {self.temperature}"
        yield from super().mistakes()

    def refusals(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        if task_named("auto", config) is FeatureExtraction:
            yield "an embedder has no logits; use distill.hidden_states"

    def begin(self, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        self.several = model.config.problem_type == "multi_label_classification"

    def loss(self, student: Any, teacher: Any, batch: Batch) -> Tensor | None:
        ours, theirs = student.logits, teacher.logits
        if ours.shape[-1] == 1:
            return self.weight * F.mse_loss(ours.float(), theirs.float())
        if self.several:
            return self.weight * soft_labels(ours, theirs, self.temperature)
        mask = batch["attention_mask"] if ours.ndim == 3 else None
        return self.weight * soft_classes(ours, theirs, self.temperature, mask)

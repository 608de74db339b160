"""Distill logits: the student learns the teacher's answers, with how sure it is of each (Hinton, 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.tasks import FeatureExtraction, task_named
from optimum_slim.training.losses import TopLogits, soft_classes, soft_labels, soft_top_classes
from optimum_slim.training.trained import Batch, Taught


@dataclass
class DistillLogits(Taught):
    """KL divergence to the teacher's softened probabilities (arXiv:1503.02531, section 2); for models with one output
    the squared error, for several labels at once the binary form. With `teacher_cache` a decoder's or a masked language
    model's teacher is known by its largest logits, and by the sum of the others.

    - distill.logits: {temperature: 2, weight: 4}
    """

    logits_suffice = True

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
        theirs = teacher.logits
        mask = batch["attention_mask"] if student.logits.ndim == 3 else None
        if isinstance(theirs, TopLogits):
            ours = student.logits[..., : theirs.classes]
            return self.weight * soft_top_classes(ours, theirs, self.temperature, mask)
        ours = student.logits[..., : theirs.shape[-1]]  # rows beyond the teacher's vocabulary stand for no token
        if ours.shape[-1] == 1:
            return self.weight * F.mse_loss(ours.float(), theirs.float())
        if self.several:
            return self.weight * soft_labels(ours, theirs, self.temperature)
        return self.weight * soft_classes(ours, theirs, self.temperature, mask)

"""Distill attentions: each layer of the student looks where a layer of the teacher looks (TinyBERT, 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig

from optimum_slim.training.layers import absent, spread
from optimum_slim.training.losses import attention_divergence, attention_error
from optimum_slim.training.trained import Batch, Taught

DISTANCES = {"mse": attention_error, "kl": attention_divergence}


@dataclass
class DistillAttentions(Taught):
    """Difference of attention probabilities, averaged over the student's layers: squared (after TinyBERT,
    arXiv:1909.10351, eq. 7) or KL divergence (MiniLM, arXiv:2002.10957, eq. 5). Layers count from 1; without `layers`
    the student's are spread over the teacher's so that the last follows the last. Heads are compared one by one where
    both layers have as many of them, else their means. While it trains, attention is computed without torch's fused
    kernel, which takes longer.

    - distill.attentions: {distance: kl}
    - distill.attentions: {weight: 100, layers: {3: 6}}
    """

    needs = ("attentions",)

    weight: float = 1.0  # of this term in the loss; squares of probabilities are small
    layers: dict[int, int] | None = None  # the teacher's layer for each of the student's, e.g. {3: 6}
    distance: Literal["mse", "kl"] = "mse"  # kl also minds rare attention

    def refusals(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        return absent(self.layers or {}, 1, config.num_hidden_layers, teacher.num_hidden_layers)

    def loss(self, student: Any, teacher: Any, batch: Batch) -> Tensor | None:
        ours, theirs = student.attentions, teacher.attentions
        pairs = self.layers or {a: max(b, 1) for a, b in spread(len(ours), len(theirs)).items() if a}
        terms = [self._term(ours[a - 1], theirs[b - 1], batch["attention_mask"]) for a, b in pairs.items()]
        return self.weight * torch.stack(terms).mean()

    def _term(self, ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
        if ours.shape[1] != theirs.shape[1]:
            ours, theirs = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
        return DISTANCES[self.distance](ours, theirs, mask)

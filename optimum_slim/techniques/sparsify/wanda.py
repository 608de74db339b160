"""Zero the weights that add least to what their layer computes on calibration texts; the others stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.data.stream import blocks_in_turn, squares
from optimum_slim.model.shape import Shape
from optimum_slim.techniques.sparsify.allocation import allocated
from optimum_slim.techniques.sparsify.masks import lowest, matrix
from optimum_slim.techniques.sparsify.scores import dense_scores, wanda_scores
from optimum_slim.techniques.sparsify.settings import (
    mistakes_in_settings,
    note_targets,
    refusals_of_targets,
    targeted,
)
from optimum_slim.techniques.technique import Technique


@dataclass(frozen=True)
class SparsifyWanda(Technique):
    """In each row of blocks those become zero whose weights, times the norms of their inputs, are smallest in sum
    (Wanda, arXiv:2306.11695). Blocks of the model are pruned in turn, each with what the pruned ones before it send.

    - sparsify.wanda: {ratio: 0.5, pattern: 4x1}
    """

    ratio: float = 0.5  # share of the weights that become zero
    pattern: Literal["unstructured", "2:4", "4x1", "4x2", "4x4"] = "unstructured"  # blocks that leave, inputs x outputs
    targets: tuple[str, ...] = ("attention", "ffn")  # roles, or globs over the names of linears
    ignore: tuple[str, ...] = ()  # roles or globs that stay as they are
    allocation: Literal["uniform", "global", "owl"] = "uniform"  # one threshold (global), or by outliers (owl)

    def mistakes(self) -> Iterator[str]:
        yield from mistakes_in_settings(self.ratio, self.pattern, self.targets, self.allocation)

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        yield from refusals_of_targets(config, self.targets, self.ignore)

    def note(self, model: PreTrainedModel) -> None:
        note_targets(model, self.ratio, self.pattern, self.targets, self.ignore)

    def apply(self, model: PreTrainedModel, calibration_data: Batches) -> None:
        if not self.ratio:
            return
        names = targeted(model, self.targets, self.ignore)
        scores = dense_scores(model, names, calibration_data)
        shares = allocated(self.allocation, self.ratio, self.pattern, names, scores, by_row=True)
        for _, means in blocks_in_turn(model, names, calibration_data, squares):
            for name, mean in means.items():
                weight = matrix(model, name)
                found = wanda_scores(weight, mean.sqrt())
                weight.masked_fill_(lowest(found, shares[name], self.pattern, by_row=True), 0)
        self.note(model)

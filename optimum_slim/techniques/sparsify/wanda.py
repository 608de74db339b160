"""Zero the weights that add least to what their layer computes on calibration texts; the others stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.data.stream import blocks_in_turn, squares
from optimum_slim.model.matrices import matrix
from optimum_slim.techniques.sparsify.allocation import allocated
from optimum_slim.techniques.sparsify.masks import lowest
from optimum_slim.techniques.sparsify.scores import dense_scores, wanda_scores
from optimum_slim.techniques.sparsify.settings import Sparsify


@dataclass(frozen=True)
class SparsifyWanda(Sparsify):
    """In each row of blocks those become zero whose weights, times the norms of their inputs, are smallest in sum
    (Wanda, arXiv:2306.11695). Blocks of the model are pruned in turn, each with what the pruned ones before it send.

    - sparsify.wanda: {ratio: 0.5, pattern: 4x1}
    """

    streams: ClassVar[bool] = True

    def apply(self, model: PreTrainedModel, calibration_data: Batches) -> None:
        if not self.ratio:
            return
        names = self.targeted(model)
        scores = dense_scores(model, names, calibration_data)
        shares = allocated(self.allocation, self.ratio, self.pattern, names, scores, by_row=True)
        for _, means in blocks_in_turn(model, names, calibration_data, squares):
            for name, mean in means.items():
                weight = matrix(model, name)
                found = wanda_scores(weight, mean.sqrt())
                weight.masked_fill_(lowest(found, shares[name], self.pattern, by_row=True), 0)
        self.note(model)

"""Zero the smallest weights: needs no texts, and is what the others are measured against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.matrices import matrix
from optimum_slim.model.streamed import held
from optimum_slim.model.turns import blocks_to_change
from optimum_slim.techniques.sparsify.allocation import allocated
from optimum_slim.techniques.sparsify.masks import lowest
from optimum_slim.techniques.sparsify.settings import Sparsify


@dataclass(frozen=True)
class SparsifyMagnitude(Sparsify):
    """The blocks of each linear whose weights are smallest in sum become zero (arXiv:1506.02626).

    - sparsify.magnitude: {ratio: 0.5, pattern: 4x1}
    """

    streams: ClassVar[bool] = True

    def apply(self, model: PreTrainedModel) -> None:
        if not self.ratio:
            return
        names = self.targeted(model)
        shares = allocated(self.allocation, self.ratio, self.pattern, names, _magnitudes(model, names))
        for block in blocks_to_change(model):
            for name in block.within(names):
                weight = matrix(model, name)
                weight.masked_fill_(lowest(weight.abs(), shares[name], self.pattern, by_row=False), 0)
        self.note(model)


def _magnitudes(model: PreTrainedModel, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """|W| of the linears in `names`, one block at a time."""
    for block in blocks_of(model):
        inside = block.within(names)
        if inside:
            with held(model, block.name):
                yield {name: matrix(model, name).abs() for name in inside}

"""Prune feed-forward neurons: whole rows and columns go, so every CPU runs a smaller matmul."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.data.statistics import Batches, grams_in_turn
from optimum_slim.model.shape import BlockShape, Shape, shape_of
from optimum_slim.model.sparsity import why_not_cut
from optimum_slim.model.surgery import keep_neurons
from optimum_slim.techniques.prune.importance import (
    dense_weight,
    group_energy,
    highest,
    idle_layers,
    kept_of,
    mistakes_in_amount,
    refit,
)
from optimum_slim.techniques.technique import Technique


@dataclass(frozen=True)
class PruneFFN(Technique):
    """Keep the neurons that add most to the output on the calibration texts (score after Wanda, arXiv:2306.11695, eq.
    1), and let those that stay make up for the others by least squares.

    - prune.ffn: {ratio: 0.25}
    """

    streams: ClassVar[bool] = True

    ratio: float | None = None  # share of each layer's neurons to remove
    keep: int | None = None  # or how many neurons stay
    round_to: int = 16  # the kernels work in groups of this many
    refit: bool = True  # solve for the weights of the neurons that stay
    ignore_layers: tuple[int, ...] = ()  # layers that stay as they are, by number from 0, or from -1 at the end

    def mistakes(self) -> Iterator[str]:
        yield from mistakes_in_amount(self.ratio, self.keep)
        if self.round_to < 1:
            yield f"round_to must be at least 1, not {self.round_to}"

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        yield from why_not_cut(config)
        yield from idle_layers(shape, self.ignore_layers)

    def shape_after(self, shape: Shape) -> Shape:
        return shape.with_each(self._block_after, self.ignore_layers)

    def _block_after(self, block: BlockShape) -> BlockShape:
        return replace(block, ffn=kept_of(block.ffn, self.ratio, self.keep, self.round_to))

    def apply(self, model: PreTrainedModel, calibration_data: Batches) -> None:
        before, wanted = shape_of(model).blocks, self.shape_after(shape_of(model)).blocks
        changed = [index for index, old in enumerate(before) if old != wanted[index]]
        for block, gram in grams_in_turn(model, "ffn_out", changed, calibration_data):
            weight = dense_weight(block.ffn_out)
            energy = group_energy(weight[:, : before[block.index].ffn], gram, group=1)
            kept = highest(energy, wanted[block.index].ffn)
            keep_neurons(model, block.index, kept)
            if self.refit:
                refit(block.ffn_out, weight, gram, kept)

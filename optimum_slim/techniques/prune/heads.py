"""Prune attention heads: their queries, keys, values and part of the output projection go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.data.statistics import Batches, grams_in_turn
from optimum_slim.model.shape import BlockShape, Shape, shape_of
from optimum_slim.model.sparsity import why_not_cut
from optimum_slim.model.surgery import keep_heads
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
class PruneHeads(Technique):
    """Keep the heads that add most to the attention's output on the calibration texts, by the energy of their part of
    it; the others are made up for by least squares. That most heads can go: arXiv:1905.10650.

    Where query heads share a key/value head, every group loses as many of them (see prune.kv_heads for whole groups).

    - prune.heads: {ratio: 0.25}
    """

    streams: ClassVar[bool] = True

    ratio: float | None = None  # share of each layer's query heads to remove
    keep: int | None = None  # or how many stay in each layer
    refit: bool = True  # solve for the output projection of the heads that stay
    ignore_layers: tuple[int, ...] = ()  # layers that stay as they are, by number from 0, or from -1 at the end

    def mistakes(self) -> Iterator[str]:
        yield from mistakes_in_amount(self.ratio, self.keep)

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        yield from why_not_cut(config)
        yield from idle_layers(shape, self.ignore_layers)
        uneven = [b for b in shape.blocks if self.keep is not None and b.kv_heads < b.heads and self.keep % b.kv_heads]
        if uneven:
            yield f"keep must be a multiple of the {uneven[0].kv_heads} key/value heads, not {self.keep}"

    def shape_after(self, shape: Shape) -> Shape:
        return shape.with_each(self._block_after, self.ignore_layers)

    def _block_after(self, block: BlockShape) -> BlockShape:
        if block.heads == block.kv_heads:
            heads = kept_of(block.heads, self.ratio, self.keep)
            return replace(block, heads=heads, kv_heads=heads)
        keep = None if self.keep is None else max(1, self.keep // block.kv_heads)
        return replace(block, heads=block.kv_heads * kept_of(block.heads // block.kv_heads, self.ratio, keep))

    def apply(self, model: PreTrainedModel, calibration_data: Batches) -> None:
        before, wanted = shape_of(model), self.shape_after(shape_of(model)).blocks
        size = before.head_dim
        changed = [index for index, old in enumerate(before.blocks) if old != wanted[index]]
        for block, gram in grams_in_turn(model, "output", changed, calibration_data):
            old, weight = before.blocks[block.index], dense_weight(block.output)
            scores = group_energy(weight[:, : old.heads * size], gram, group=size)
            kept = _kept_heads(scores, old, wanted[block.index])
            keep_heads(model, block.index, kept)
            if self.refit:
                refit(block.output, weight, gram, [head * size + at for head in kept for at in range(size)])


def _kept_heads(scores: Tensor, old: BlockShape, new: BlockShape) -> list[int]:
    if old.heads == old.kv_heads:
        return highest(scores, new.heads)
    group = old.heads // old.kv_heads
    per_group = scores.view(old.kv_heads, group)
    return [
        kv * group + head for kv in range(old.kv_heads) for head in highest(per_group[kv], new.heads // old.kv_heads)
    ]

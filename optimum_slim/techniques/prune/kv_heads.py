"""Prune key/value heads of a decoder: the cache shrinks, which long contexts and large batches pay for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.data.statistics import Batches, grams_in_turn
from optimum_slim.model.anatomy import anatomy_of
from optimum_slim.model.shape import BlockShape, Shape, shape_of
from optimum_slim.model.sparsity import why_not_cut
from optimum_slim.model.surgery import keep_heads, merge_kv_heads
from optimum_slim.model.turns import blocks_to_change
from optimum_slim.techniques.prune.importance import (
    dense_weight,
    group_energy,
    highest,
    idle_layers,
    kept_of,
    mistakes_in_amount,
)
from optimum_slim.techniques.technique import Technique


@dataclass(frozen=True)
class PruneKVHeads(Technique):
    """Drop whole groups (a key/value head and the query heads that read it) that add least to the attention's output
    on the calibration texts; or merge neighbouring key/value heads into their mean, all query heads staying
    (grouped-query attention, arXiv:2305.13245, section 2.1).

    - prune.kv_heads: {ratio: 0.5, how: merge}
    """

    streams: ClassVar[bool] = True

    ratio: float | None = None  # share of each layer's key/value heads to remove
    keep: int | None = None  # or how many stay in each layer
    how: Literal["drop", "merge"] = "drop"  # merge costs less quality, drop also removes query heads
    ignore_layers: tuple[int, ...] = ()  # layers that stay as they are, by number from 0, or from -1 at the end

    def mistakes(self) -> Iterator[str]:
        yield from mistakes_in_amount(self.ratio, self.keep)

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        yield from why_not_cut(config)
        yield from idle_layers(shape, self.ignore_layers)
        if anatomy_of(config).kv_heads_key is None:
            yield f"{config.model_type} has no key/value heads apart from its heads; use prune.heads"
            return
        for index, (old, new) in enumerate(zip(shape.blocks, self.shape_after(shape).blocks, strict=True)):
            if self.how == "merge" and old.kv_heads % new.kv_heads:
                yield f"layer {index}: {old.kv_heads} key/value heads cannot merge evenly into {new.kv_heads}"
                return

    def shape_after(self, shape: Shape) -> Shape:
        return shape.with_each(self._block_after, self.ignore_layers)

    def _block_after(self, block: BlockShape) -> BlockShape:
        kv_heads = kept_of(block.kv_heads, self.ratio, self.keep)
        queries = block.heads // block.kv_heads
        return replace(block, kv_heads=kv_heads, heads=block.heads if self.how == "merge" else kv_heads * queries)

    def asks(self) -> tuple[str, ...]:
        return () if self.how == "merge" else super().asks()

    def apply(self, model: PreTrainedModel, calibration_data: Batches = ()) -> None:
        before, wanted = shape_of(model), self.shape_after(shape_of(model)).blocks
        changed = [index for index, old in enumerate(before.blocks) if old != wanted[index]]
        if self.how == "merge":
            for block in blocks_to_change(model):
                if block.index in changed:
                    merge_kv_heads(model, block.index, wanted[block.index].kv_heads)
            return
        for block, gram in grams_in_turn(model, "output", changed, calibration_data):
            old = before.blocks[block.index]
            queries = old.heads // old.kv_heads
            weight = dense_weight(block.output)[:, : old.heads * before.head_dim]
            energy = group_energy(weight, gram, group=queries * before.head_dim)
            kept = highest(energy, wanted[block.index].kv_heads)
            keep_heads(model, block.index, [kv * queries + head for kv in kept for head in range(queries)])

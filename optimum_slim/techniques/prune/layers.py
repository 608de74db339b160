"""Prune whole layers: attention, norms and feed-forward go together, which is the surest speedup there is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.data.statistics import Batches, block_influences, losses_without, moments_across
from optimum_slim.data.through import one_by_one
from optimum_slim.model.anatomy import anatomy_of, norms_first
from optimum_slim.model.grids import why_not_keeping
from optimum_slim.model.shape import Shape, shape_of
from optimum_slim.model.surgery import keep_layers
from optimum_slim.model.turns import blocks_to_change
from optimum_slim.techniques.prune.importance import dense_weight, highest, kept_of, made_up, mistakes_in_amount, put
from optimum_slim.techniques.technique import Technique


@dataclass(frozen=True)
class PruneLayers(Technique):
    """Keep layers that are evenly spread (as DistilBERT is made, arXiv:1910.01108), that turn their input most on the
    calibration texts (block influence, ShortGPT, arXiv:2403.03853, eq. 1), without which a decoder loses most there
    (SLEB, arXiv:2402.09025, algorithm 1), or that a list names.

    - prune.layers: {ratio: 0.5}
    - prune.layers: {ratio: 0.1, which: influence}
    - prune.layers: {ratio: 0.1, which: loss, refit: true}
    - prune.layers: {which: [0, 2, 4]}
    """

    keeps_grids: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    ratio: float | None = None  # share of the layers to remove
    keep: int | None = None  # or how many stay
    which: Literal["evenly", "influence", "loss"] | list[int] = "evenly"  # or the numbers of those that stay
    tried_on: int = 16  # loss: on so many of the calibration texts each layer is left out in turn
    refit: bool = False  # the layer before makes up for those that go, on the calibration texts; without a train step

    def mistakes(self) -> Iterator[str]:
        if self.tried_on < 1:
            yield f"tried_on must be at least 1, not {self.tried_on}"
        if isinstance(self.which, list):
            if self.ratio is not None or self.keep is not None:
                yield "which lists the layers that stay; leave ratio and keep out"
            if not self.which or sorted(set(self.which)) != self.which or self.which[0] < 0:
                yield f"which must list layers from 0 up in ascending order, not {self.which}"
        else:
            yield from mistakes_in_amount(self.ratio, self.keep)

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        if isinstance(self.which, list) and self.which[-1] >= len(shape.blocks):
            yield f"which: there is no layer {self.which[-1]}; the model has layers 0 to {len(shape.blocks) - 1}"
        if getattr(config, "scale_attn_by_inverse_layer_idx", False):
            yield "this model scales attention by a layer's number, so its layers cannot be renumbered"
        if self.which == "loss" and not anatomy_of(config).causal:
            yield "which: loss is that of next tokens, which this model does not tell; use influence"
        if self.refit:
            yield from why_not_keeping(config)
            if norms_first(config) is None:
                yield "refit: this model's norms come behind what its layers add, which cannot be made up for before"

    def shape_after(self, shape: Shape) -> Shape:
        """Of the layers that stay by influence or loss only the number is known before the texts are seen."""
        kept = self._places(len(shape.blocks))
        return Shape(tuple(shape.blocks[index] for index in kept), shape.head_dim)

    def asks(self) -> tuple[str, ...]:
        return super().asks() if self.refit or self.which in ("influence", "loss") else ()

    def apply(self, model: PreTrainedModel, calibration_data: Batches = ()) -> None:
        total = len(shape_of(model).blocks)
        kept = self._places(total)
        if self.which == "influence":
            kept = highest(block_influences(model, calibration_data), len(kept))
        elif self.which == "loss":
            texts = one_by_one(calibration_data)
            spread = texts[:: max(1, math.ceil(len(texts) / self.tried_on))]
            kept = _all_but_redundant(model, spread, total - len(kept))
        if self.refit:
            moments = moments_across(model, _gaps(kept, total), calibration_data)
            for block in blocks_to_change(model, moments):
                put(block.ffn_out, made_up(dense_weight(block.ffn_out), *moments[block.index]))
        if len(kept) < total:
            keep_layers(model, kept)

    def _places(self, total: int) -> list[int]:
        if isinstance(self.which, list):
            return [index for index in self.which if index < total]
        count = kept_of(total, self.ratio, self.keep)
        return [index * total // count for index in range(count)]


def _all_but_redundant(model: PreTrainedModel, batches: Batches, count: int) -> list[int]:
    """What stays when so many layers go, one after the other, each time that whose absence costs least."""
    gone: list[int] = []
    for _ in range(count):
        gone.append(int(losses_without(model, batches, gone).argmin()))
    return [index for index in range(len(shape_of(model).blocks)) if index not in gone]


def _gaps(kept: Sequence[int], total: int) -> dict[int, int]:
    """The last of the layers that go behind each that stays, by the latter's number; the first of all cannot be made up
    for."""
    ends = [*kept[1:], total]
    return {before: after - 1 for before, after in zip(kept, ends, strict=True) if after - before > 1}

"""Distill relations: the student relates the tokens of a text to each other as the teacher does (MiniLM, 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.model.anatomy import Block, blocks_of
from optimum_slim.model.shape import shape_in
from optimum_slim.training.losses import relation_loss
from optimum_slim.training.trained import Batch, Taught

RELATIONS = ("queries", "keys", "values")  # in the order of an anatomy's projections


@dataclass
class DistillRelations(Taught):
    """KL divergence of the relations between a layer's queries, between its keys and between its values, added up
    (MiniLMv2, arXiv:2012.15828, section 3.1; values alone: MiniLM, arXiv:2002.10957, eq. 6 and 7). Widths and numbers
    of heads may differ from the teacher's. Of a large teacher an upper middle layer teaches more than the last, e.g.
    21 of 24. Layers count from 1; vectors are taken as the projections give them, before positions turn them.

    - distill.relations: {weight: 1}
    - distill.relations: {teacher_layer: 21, heads: 64}
    """

    weight: float = 1.0  # of this term in the loss
    layer: int | None = None  # of the student; null: its last
    teacher_layer: int | None = None  # null: its last
    heads: int | None = None  # relation heads; null: as many as the teacher's layer has key/value heads
    relations: tuple[str, ...] = RELATIONS  # what is related: queries, keys, values

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        for name in ("layer", "teacher_layer", "heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} must be at least 1, not {value}"
        for name in self.relations:
            if name not in RELATIONS:
                yield f"relations: {name!r} is not one; these are: {', '.join(RELATIONS)}"
        if not self.relations:
            yield f"relations must list at least one of {', '.join(RELATIONS)}"

    def refusals(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        missing = [
            *_missing("layer", self.layer, "model", config.num_hidden_layers),
            *_missing("teacher_layer", self.teacher_layer, "teacher", teacher.num_hidden_layers),
        ]
        yield from missing or self._indivisible(config, teacher)

    def _indivisible(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        heads, ours, theirs = self._heads(teacher), widths(config, self.layer), widths(teacher, self.teacher_layer)
        uneven = [name for name in self.relations if ours[name] % heads or theirs[name] % heads]
        if uneven:
            common = math.gcd(*(one[name] for one in (ours, theirs) for name in self.relations))
            yield (
                f"heads: {heads} relation heads do not divide {uneven[0]} of {ours[uneven[0]]} values, of the teacher "
                f"{theirs[uneven[0]]}; give a divisor of {common}"
            )

    def begin(self, model: PreTrainedModel, teacher: Any) -> None:
        self.split = self._heads(teacher.config)
        self.ours: dict[str, Tensor] = {}
        self.theirs: dict[str, Tensor] = {}
        self.hooks = [
            *record(list(blocks_of(model))[_index(self.layer)], self.ours),
            *record(list(blocks_of(teacher))[_index(self.teacher_layer)], self.theirs),
        ]

    def loss(self, student: Any, teacher: Any, batch: Batch) -> Tensor | None:
        mask = batch["attention_mask"]
        terms = [relation_loss(self.ours[name], self.theirs[name], self.split, mask) for name in self.relations]
        return self.weight * torch.stack(terms).sum()

    def end(self, model: PreTrainedModel) -> None:
        for hook in self.hooks:
            hook.remove()
        self.ours.clear()
        self.theirs.clear()

    def _heads(self, teacher: PretrainedConfig) -> int:
        return self.heads or shape_in(teacher).blocks[_index(self.teacher_layer)].kv_heads


def record(block: Block, found: dict[str, Tensor]) -> list[RemovableHandle]:
    """Writes into `found`, whenever the block runs, its queries, keys and values [batch, tokens, width]; until the
    hooks that it returns are removed."""

    def watch(linear: nn.Module, names: tuple[str, ...]) -> RemovableHandle:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found.update(zip(names, output.chunk(len(names), dim=-1), strict=True))

        return linear.register_forward_hook(keep)

    if len(block.projections) == 1:
        return [watch(block.projections[0], RELATIONS)]
    return [watch(linear, (name,)) for linear, name in zip(block.projections, RELATIONS, strict=True)]


def widths(config: PretrainedConfig, layer: int | None) -> dict[str, int]:
    """How many values a token's queries, keys and values have in a layer, counted from 1; without one in the last."""
    shape = shape_in(config)
    block = shape.blocks[_index(layer)]
    heads = (block.heads, block.kv_heads, block.kv_heads)
    return {name: count * shape.head_dim for name, count in zip(RELATIONS, heads, strict=True)}


def _missing(key: str, layer: int | None, owner: str, count: int) -> Iterator[str]:
    if layer is not None and layer > count:
        yield f"{key}: there is no layer {layer}; the {owner} has layers 1 to {count}"


def _index(layer: int | None) -> int:
    return -1 if layer is None else layer - 1

"""Round weights to integers of few bits in groups that share a scale, without training; activations stay floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.data.stream import blocks_in_turn, products
from optimum_slim.model.grids import Grid, note_grids, put_grids
from optimum_slim.model.matrices import axis_of, matrix
from optimum_slim.model.shape import Shape
from optimum_slim.model.targets import idle_entries, targeted
from optimum_slim.techniques.quantize.gptq import gptq
from optimum_slim.techniques.quantize.rtn import rtn
from optimum_slim.techniques.technique import Technique

SMALLEST_GROUP = 16  # that the file's blocks can hold
Rounded = tuple[Tensor, Tensor, Tensor]  # integers, scale and zero point of a weight


@dataclass(frozen=True)
class QuantizeWeights(Technique):
    """Weights end on grids, which `deploy.precision: int8-weights` and `int4-weights` store as they are. `rtn` rounds
    to nearest; `gptq` lets later weights make up for what rounding changes (arXiv:2210.17323), block by block on what
    the rounded blocks before send.

    - quantize.weights: {method: gptq, bits: 4, group_size: 32}
    """

    helps: ClassVar[tuple[str, ...]] = ("speed", "size")

    method: Literal["rtn", "gptq"] = "gptq"  # how integers are found
    bits: Literal[4, 8] = 4  # of a weight
    group_size: int | None = 32  # inputs that share a scale, a multiple of 16; null: all inputs of an output
    symmetric: bool = True  # zero is the middle integer, and no zero points are stored
    targets: tuple[str, ...] = ("attention", "ffn")  # roles, or globs over the names of linears
    ignore: tuple[str, ...] = ()  # roles or globs that stay as they are

    def mistakes(self) -> Iterator[str]:
        size = self.group_size
        if size is not None and (size < SMALLEST_GROUP or size % SMALLEST_GROUP):
            yield f"group_size must be a multiple of {SMALLEST_GROUP}, as the file's blocks are, or null; not {size}"
        if not self.targets:
            yield "targets must name roles (attention, ffn) or linears"

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        yield from idle_entries(config, self.targets, self.ignore)

    def note(self, model: PreTrainedModel) -> None:
        names = targeted(model, self.targets, self.ignore)
        axes = {f"{name}.weight": axis_of(model.get_submodule(name)) for name in names}
        note_grids(model.config, axes, self.bits, self.group_size)

    def asks(self) -> tuple[str, ...]:
        return () if self.method == "rtn" else super().asks()

    def apply(self, model: PreTrainedModel, calibration_data: Batches = ()) -> None:
        names = targeted(model, self.targets, self.ignore)
        if self.method == "rtn":
            for name in names:
                self._put(model, name, rtn(matrix(model, name), self.bits, self.group_size, self.symmetric))
            return
        for _, moments in blocks_in_turn(model, names, calibration_data, products):
            for name, moment in moments.items():
                weight = matrix(model, name)
                self._put(model, name, gptq(weight, moment, self.bits, self.group_size, self.symmetric))

    @torch.no_grad()
    def _put(self, model: PreTrainedModel, name: str, found: Rounded) -> None:
        """Writes the floats that the integers stand for into a linear, and gives the model their grid."""
        integers, scale, zero_point = found
        grid = Grid(scale.cpu(), zero_point.cpu(), self.bits, self.group_size, axis_of(model.get_submodule(name)))
        matrix(model, name).copy_(grid.floats(integers.cpu()))
        put_grids(model, {f"{name}.weight": grid})

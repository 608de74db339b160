"""Zero the smallest weights: needs no texts, and is what the others are measured against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.shape import Shape
from optimum_slim.techniques.sparsify.allocation import allocated
from optimum_slim.techniques.sparsify.masks import lowest, matrix
from optimum_slim.techniques.sparsify.settings import (
    mistakes_in_settings,
    note_targets,
    refusals_of_targets,
    targeted,
)
from optimum_slim.techniques.technique import Technique


@dataclass(frozen=True)
class SparsifyMagnitude(Technique):
    """The blocks of each linear whose weights are smallest in sum become zero (arXiv:1506.02626).

    - sparsify.magnitude: {ratio: 0.5, pattern: 4x1}
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

    def apply(self, model: PreTrainedModel) -> None:
        if not self.ratio:
            return
        names = targeted(model, self.targets, self.ignore)
        shares = allocated(self.allocation, self.ratio, self.pattern, names, _magnitudes(model, names))
        for name, share in shares.items():
            weight = matrix(model, name)
            weight.masked_fill_(lowest(weight.abs(), share, self.pattern, by_row=False), 0)
        self.note(model)


def _magnitudes(model: PreTrainedModel, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """|W| of the linears in `names`, one block at a time."""
    for block in blocks_of(model):
        inside = [name for name in names if name.startswith(f"{block.name}.")]
        if inside:
            yield {name: matrix(model, name).abs() for name in inside}

"""Settings that all techniques of sparsity have: what is wrong with them, and which linears they mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.model.shape import Shape
from optimum_slim.model.sparsity import note_sparsity
from optimum_slim.model.targets import idle_entries, mistakes_in_targets, targeted
from optimum_slim.techniques.technique import Technique

Blocks = Literal["unstructured", "2:4", "4x1", "4x2", "4x4"]  # every pattern of the kernels but dense


@dataclass(frozen=True)
class Sparsify(Technique):
    """What techniques of sparsity have in common; each adds how weights are chosen."""

    ratio: float = 0.5  # share of the weights that become zero
    pattern: Blocks = "unstructured"  # blocks that leave, inputs x outputs
    targets: tuple[str, ...] = ("attention", "ffn")  # roles, or globs over the names of linears
    ignore: tuple[str, ...] = ()  # roles or globs that stay as they are
    allocation: Literal["uniform", "global", "owl"] = "uniform"  # one threshold (global), or by outliers (owl)

    def mistakes(self) -> Iterator[str]:
        if not 0 <= self.ratio < 1:
            yield f"ratio must be at least 0 and below 1, not {self.ratio}"
        elif self.pattern == "2:4" and self.ratio != 0.5:
            yield f"ratio must be 0.5 with pattern 2:4, which keeps 2 weights of 4, not {self.ratio}"
        if self.pattern == "2:4" and self.allocation != "uniform":
            yield f"allocation must be uniform with pattern 2:4, which takes as much everywhere, not {self.allocation}"
        yield from mistakes_in_targets(self.targets)

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        yield from idle_entries(config, self.targets, self.ignore)

    def note(self, model: PreTrainedModel) -> None:
        if self.ratio:
            note_sparsity(model.config, [f"{name}.weight" for name in self.targeted(model)], self.pattern)

    def targeted(self, model: PreTrainedModel) -> list[str]:
        """The names of the linears that are meant, as in `named_modules()`, block by block."""
        return targeted(model, self.targets, self.ignore)

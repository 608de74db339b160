"""Settings that all techniques of sparsity have: what is wrong with them, and which linears they mean."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.checkpoint import empty_model
from optimum_slim.model.shape import Shape
from optimum_slim.model.sparsity import note_sparsity
from optimum_slim.techniques.technique import Technique

Blocks = Literal["unstructured", "2:4", "4x1", "4x2", "4x4"]  # every pattern of the kernels but dense
ROLES = {"attention": ("projections", "output"), "ffn": ("ffn_in", "ffn_out")}  # as in Anatomy


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
        if not self.targets:
            yield "targets must name roles (attention, ffn) or linears"

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        """Entries that mean no linear of this model."""
        roles = _roles(empty_model(copy.deepcopy(config)))
        idle = False
        for key, entries in (("targets", self.targets), ("ignore", self.ignore)):
            for entry in entries:
                if not any(_means(entry, *one) for one in roles.items()):
                    idle = True
                    yield f"{key}: {entry!r} matches no linear; give attention, ffn, or a glob for {next(iter(roles))}"
        if not idle and not self._chosen(roles):
            yield "ignore leaves none of the linears that targets names"

    def note(self, model: PreTrainedModel) -> None:
        if self.ratio:
            note_sparsity(model.config, [f"{name}.weight" for name in self.targeted(model)], self.pattern)

    def targeted(self, model: PreTrainedModel) -> list[str]:
        """The names of the linears, as in `named_modules()`, that an entry of `targets` and none of `ignore` means,
        block by block."""
        return self._chosen(_roles(model))

    def _chosen(self, roles: Mapping[str, str]) -> list[str]:
        return [
            name
            for name, role in roles.items()
            if any(_means(entry, name, role) for entry in self.targets)
            and not any(_means(entry, name, role) for entry in self.ignore)
        ]


def _roles(model: PreTrainedModel) -> dict[str, str]:
    """The role of each linear in the blocks, by its name."""
    found = {}
    for block in blocks_of(model):
        for role, parts in ROLES.items():
            for part in parts:
                paths = getattr(block.anatomy, part)
                for path in [paths] if isinstance(paths, str) else paths:
                    found[f"{block.name}.{path}"] = role
    return found


def _means(entry: str, name: str, role: str) -> bool:
    return role == entry if entry in ROLES else fnmatchcase(name, entry)

"""Settings that all techniques of sparsity have: what is wrong with them, and which linears they mean."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.checkpoint import empty_model
from optimum_slim.model.sparsity import note_sparsity

ROLES = {"attention": ("projections", "output"), "ffn": ("ffn_in", "ffn_out")}  # as in Anatomy


def mistakes_in_settings(ratio: float, pattern: str, targets: Sequence[str], allocation: str) -> Iterator[str]:
    """What is wrong with them by themselves."""
    if not 0 <= ratio < 1:
        yield f"ratio must be at least 0 and below 1, not {ratio}"
    elif pattern == "2:4" and ratio != 0.5:
        yield f"ratio must be 0.5 with pattern 2:4, which keeps 2 weights of 4, not {ratio}"
    if pattern == "2:4" and allocation != "uniform":
        yield f"allocation must be uniform with pattern 2:4, which takes as much everywhere, not {allocation}"
    if not targets:
        yield "targets must name roles (attention, ffn) or linears"


def refusals_of_targets(config: PretrainedConfig, targets: Sequence[str], ignore: Sequence[str]) -> Iterator[str]:
    """Entries that mean no linear of this model."""
    roles = _roles(empty_model(copy.deepcopy(config)))
    idle = False
    for key, entries in (("targets", targets), ("ignore", ignore)):
        for entry in entries:
            if not any(_means(entry, *one) for one in roles.items()):
                idle = True
                yield f"{key}: {entry!r} matches no linear; give attention, ffn, or a glob for {next(iter(roles))}"
    if not idle and not _chosen(roles, targets, ignore):
        yield "ignore leaves none of the linears that targets names"


def targeted(model: PreTrainedModel, targets: Sequence[str], ignore: Sequence[str]) -> list[str]:
    """The names of the linears that an entry of `targets` and none of `ignore` means, block by block.

    Args:
        model: one on the meta device will do.
        targets, ignore: roles (attention, ffn), or globs over names of linears as in `named_modules()`.
    """
    return _chosen(_roles(model), targets, ignore)


def note_targets(
    model: PreTrainedModel, ratio: float, pattern: str, targets: Sequence[str], ignore: Sequence[str]
) -> None:
    """Writes into the model's config, in place, that the targeted weights are sparse, if anything leaves at all."""
    if ratio:
        note_sparsity(model.config, [f"{name}.weight" for name in targeted(model, targets, ignore)], pattern)


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


def _chosen(roles: dict[str, str], targets: Sequence[str], ignore: Sequence[str]) -> list[str]:
    return [
        name
        for name, role in roles.items()
        if any(_means(entry, name, role) for entry in targets)
        and not any(_means(entry, name, role) for entry in ignore)
    ]


def _means(entry: str, name: str, role: str) -> bool:
    return role == entry if entry in ROLES else fnmatchcase(name, entry)

"""Which linears a setting means: those of a role, or those whose names fit a glob."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.checkpoint import empty_model

ROLES = {"attention": ("projections", "output"), "ffn": ("ffn_in", "ffn_out")}  # as in Anatomy


def targeted(model: PreTrainedModel, targets: Sequence[str], ignore: Sequence[str] = ()) -> list[str]:
    """The names of the linears in the blocks, as in `named_modules()`, that an entry of `targets` and none of `ignore`
    means, block by block.

    Args:
        targets, ignore: roles (attention, ffn), or globs over the names.
    """
    return _chosen(_roles(model), targets, ignore)


def mistakes_in_targets(targets: Sequence[str]) -> Iterator[str]:
    """What is wrong with such a setting by itself."""
    if not targets:
        yield "targets must name roles (attention, ffn) or linears"


def idle_entries(config: PretrainedConfig, targets: Sequence[str], ignore: Sequence[str]) -> Iterator[str]:
    """What is wrong with such settings for a model of this config: entries that mean none of its linears, in words for
    the user."""
    roles = _roles(empty_model(copy.deepcopy(config)))
    idle = False
    for key, entries in (("targets", targets), ("ignore", ignore)):
        for entry in entries:
            if not any(_means(entry, *one) for one in roles.items()):
                idle = True
                yield f"{key}: {entry!r} matches no linear; give attention, ffn, or a glob for {next(iter(roles))}"
    if not idle and not _chosen(roles, targets, ignore):
        yield "ignore leaves none of the linears that targets names"


def _chosen(roles: Mapping[str, str], targets: Sequence[str], ignore: Sequence[str]) -> list[str]:
    return [
        name
        for name, role in roles.items()
        if any(_means(entry, name, role) for entry in targets)
        and not any(_means(entry, name, role) for entry in ignore)
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

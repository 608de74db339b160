"""Which weights of a model are sparse, in which pattern: told in its config, as zeros mean nothing by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.errors import ModelError
from optimum_slim.kernels.pattern import PATTERNS
from optimum_slim.model.hook import SLIM_VERSION

T = TypeVar("T")


def note_sparsity(config: PretrainedConfig, names: Iterable[str], pattern: str) -> None:
    """Writes into `config`, in place, that these weights are sparse; what it says of others stays.

    Args:
        names: parameters, as in `named_parameters()`, e.g. "bert.encoder.layer.0.intermediate.dense.weight".
        pattern: of `PATTERNS`; for a weight that is listed already the last one holds.

    Raises:
        ModelError: what the config says so far makes no sense.
    """
    _write(config, sparsity_in(config) | dict.fromkeys(names, pattern))


def sparsity_in(config: PretrainedConfig) -> dict[str, str]:
    """The pattern of each sparse weight, by the parameter's name; empty where nothing is sparse.

    Raises:
        ModelError: `slim.sparsity` is no mapping of names to patterns.
    """
    slim = getattr(config, "slim", None) or {}
    listed = slim.get("sparsity", {}) if isinstance(slim, dict) else None
    if not isinstance(listed, dict):
        raise ModelError(f"config.json: slim.sparsity must map weights to patterns, not be {listed!r}")
    known = [name for name in PATTERNS if name != "dense"]
    for name, pattern in listed.items():
        if not isinstance(name, str) or pattern not in known:
            raise ModelError(f"config.json: slim.sparsity.{name}: {pattern!r} is no pattern of {', '.join(known)}")
    return dict(listed)


def sparse_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The weights that the model's config lists as sparse: their zeros are to stay.

    Raises:
        ModelError: the config lists one that the model lacks.
    """
    names, parameters = sparsity_in(model.config), dict(model.named_parameters(remove_duplicate=False))
    lacking = [name for name in names if name not in parameters]
    if lacking:
        raise ModelError(f"config.json: slim.sparsity lists {lacking[0]}, which this model lacks")
    return {name: parameters[name] for name in names}


def forget_sparsity(config: PretrainedConfig, names: Iterable[str]) -> None:
    """Writes into `config`, in place, that these weights are dense again."""
    gone = set(names)
    _write(config, {name: pattern for name, pattern in sparsity_in(config).items() if name not in gone})


def move_blocks(config: PretrainedConfig, moved: Mapping[str, str | None]) -> None:
    """Follows blocks to their new places: renames their sparse weights in `config`, in place, and forgets those of
    blocks that are gone.

    Args:
        moved: the new name of each block by its old one, e.g. "bert.encoder.layer.2"; None where it is gone.
    """
    if sparsity_in(config):
        _write(config, moved_names(sparsity_in(config), moved))


def moved_names(listed: Mapping[str, T], moved: Mapping[str, str | None]) -> dict[str, T]:
    """What is listed by parameter, under the names that they have after a move of blocks, as `move_blocks`."""
    after = {}
    for name, one in listed.items():
        block = next((block for block in moved if name.startswith(f"{block}.")), None)
        place = block if block is None else moved[block]
        if block is None:
            after[name] = one
        elif place is not None:
            after[place + name.removeprefix(block)] = one
    return after


def why_not_cut(config: PretrainedConfig) -> Iterator[str]:
    """Why rows and columns can no longer be cut out of this model's linears, if so, in words for the user."""
    if sparsity_in(config):
        yield "sparsity must come after: cutting rows and columns would tear the blocks of its weights apart"


def _write(config: PretrainedConfig, listed: dict[str, str]) -> None:
    config.slim = {"version": SLIM_VERSION, **(getattr(config, "slim", None) or {}), "sparsity": listed}

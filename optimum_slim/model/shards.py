"""A checkpoint's safetensors files: where each tensor stands, and new ones, a file for each part of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from optimum_slim.errors import ModelError
from optimum_slim.files import wholly

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Place:
    """Where a tensor stands."""

    path: Path
    shape: list[int]


def find_tensors(folder: Path) -> dict[str, Place]:
    """Every tensor of a checkpoint, in one file or in the shards that its index names, by the tensor's name.

    Raises:
        ModelError: there is no such file, one is damaged, or the index names what is not in the folder.
    """
    found = {}
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  it is no mapping
                    found[key] = Place(path, list(file.get_slice(key).get_shape()))
        except Exception as error:  # safetensors raises a class of its Rust module
            raise ModelError(f"model: {path} cannot be read: {error}") from error
    return found


def stored_bytes(folder: Path) -> int:
    """Size of a checkpoint's files.

    Raises:
        ModelError: as `find_tensors`.
    """
    return sum(path.stat().st_size for path in {place.path for place in find_tensors(folder).values()})


def shard_name(number: int, count: int) -> str:
    """The name that the Hub gives to a shard, counted from 1."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def write_index(folder: Path, shards: Mapping[str, Mapping[str, int]]) -> None:
    """Writes the index of a sharded checkpoint into `folder`.

    Args:
        shards: for each file the bytes of its tensors by name.
    """
    total = sum(size for tensors in shards.values() for size in tensors.values())
    index = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted((name, file) for file, tensors in shards.items() for name in tensors)),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as transformers does, whole or not at all."""
    wholly(path, lambda to: save_file({k: one.contiguous().cpu() for k, one in tensors.items()}, to, {"format": "pt"}))


def stored_as(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 tensor in the smaller type that it was stored in, where nothing is lost by that; else as it is."""
    smaller = value.to(dtype)
    return smaller if torch.equal(smaller.float(), value) else value


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WHOLE).is_file():
            raise ModelError(f"model: {folder} holds neither {WHOLE} nor {INDEX}; weights are read from safetensors")
        return [folder / WHOLE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model: {index} cannot be read: {error}") from error
    wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if wrong:
        raise ModelError(f"model: {index} names {wrong[0]!r}, which is no file of that folder")
    return [folder / name for name in names]

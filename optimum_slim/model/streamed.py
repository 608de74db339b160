"""A model whose weights stay on the disk: those of one part, a block or what stands outside the blocks, are in memory
while it is used."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimum_slim.errors import ModelError
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.shards import find_tensors, shard_name, write_index, write_shard
from optimum_slim.model.sparsity import moved_names

OUTSIDE, HEAD = "outside", "head"  # parts that are no blocks; a head is one only where no embedding is its weight
_DISK = "slim_disk"  # attribute of a model: no parameter and no buffer, so that the model stays a stock one


class OnDisk:
    """Where each parameter of a model stands: the file, and the tensor's name in it."""

    def __init__(self, places: Mapping[str, tuple[Path, str]]):
        self.places = dict(places)
        self.written: set[Path] = set()  # files of one part each, which steps have written

    def read(self, name: str) -> Tensor:
        """A parameter as it is stored. The file is closed after each, as pages that stay mapped count as memory."""
        path, key = self.places[name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(key).clone()

    def file_of(self, names: list[str]) -> Path | None:
        """The file of a step that holds exactly these parameters; None where there is none."""
        paths = {self.places[name][0] for name in names}
        named = all(self.places[name][1] == name for name in names)
        return next(iter(paths)) if named and len(paths) == 1 and paths <= self.written else None

    def bytes_of(self, name: str) -> int:
        """The size of a parameter as it is stored."""
        path, key = self.places[name]
        with safe_open(path, framework="pt") as file:
            one = file.get_slice(key)
            return math.prod(one.get_shape()) * one[:0].dtype.itemsize

    def dtype(self, name: str) -> torch.dtype:
        """The type that a parameter is stored in."""
        path, key = self.places[name]
        with safe_open(path, framework="pt") as file:
            return file.get_slice(key)[:0].dtype


def put_on_disk(model: PreTrainedModel, folder: Path) -> None:
    """Lets a model on the meta device have its weights from a folder, in place.

    Raises:
        ModelError: the files cannot be read, or do not fit the model.
    """
    found, problems = {}, dict[str, list[str]]()
    tensors, prefix = find_tensors(folder), f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        # A base model's checkpoint has no prefix, and one of a model with a head may be read into the base alone.
        key = next((key for key in (name, name.removeprefix(prefix), prefix + name) if key in tensors), None)
        if key is None:
            problems.setdefault("missing", []).append(name)
        elif tensors[key].shape != list(parameter.shape):
            problems.setdefault("mismatched", []).append(name)
        else:
            found[name] = tensors[key].path, key
    if problems:
        told = "; ".join(f"{kind}: {', '.join(sorted(names)[:3])}" for kind, names in problems.items())
        raise ModelError(f"model: the weights in {folder} do not fit its config.json ({told})")
    setattr(model, _DISK, OnDisk(found))


def disk_of(model: PreTrainedModel) -> OnDisk | None:
    """Where the weights of a streamed model are; None where the model is whole in memory."""
    return getattr(model, _DISK, None)


def device_of(model: PreTrainedModel) -> torch.device:
    """Where a model computes; a streamed one on the CPU."""
    return model.device if disk_of(model) is None else torch.device("cpu")


def parts_of(model: PreTrainedModel) -> dict[str, list[str]]:
    """The names of the parameters of each part, shared ones once: `outside`, each block by its name, and `head`."""
    blocks = [block.name for block in blocks_of(model)]
    head, tables = model.get_output_embeddings(), model.get_input_embeddings()
    alone = set(map(id, head.parameters())) - set(map(id, tables.parameters())) if head is not None else set()
    parts: dict[str, list[str]] = {OUTSIDE: [], **{name: [] for name in blocks}, HEAD: []}
    for name, parameter in model.named_parameters():
        block = next((one for one in blocks if name.startswith(f"{one}.")), None)
        parts[block or (HEAD if id(parameter) in alone else OUTSIDE)].append(name)
    return {part: names for part, names in parts.items() if names}


@contextmanager
def held(model: PreTrainedModel, *parts: str) -> Iterator[None]:
    """Inside, the weights of these parts are in memory, in float32; of a model that is whole they always are. What they
    are changed to is lost unless it is written before the end."""
    disk = disk_of(model)
    if disk is None:
        yield
        return
    with filled(model, parts, lambda name, _: disk.read(name).to(torch.float32)):
        yield


@contextmanager
def filled(model: PreTrainedModel, parts: Iterable[str], value: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Inside, the parameters of these parts of a streamed model are what `value` makes of their names and of what they
    are on the meta device."""
    _fill(model, _named(model, parts), value)
    try:
        yield
    finally:
        _fill(model, _named(model, parts), lambda _, old: torch.empty_like(old, device="meta"))
        _hand_back()


def in_parts(model: PreTrainedModel) -> Iterator[list[nn.Parameter]]:
    """All parameters, shared ones once: those of one part at a time, or of a model that is whole all at once."""
    if disk_of(model) is None:
        yield list(model.parameters())
        return
    for part, names in parts_of(model).items():
        with held(model, part):
            yield [model.get_parameter(name) for name in names]


def save_parts(model: PreTrainedModel, folder: Path) -> None:
    """Writes the weights of a streamed model into `folder`, a shard for each part, with their index. A file that is one
    part already and was written by a step is linked, so that no byte of it is copied."""
    disk = disk_of(model)
    if disk is None:
        raise ModelError("this model is whole in memory")
    folder.mkdir(parents=True, exist_ok=True)
    parts, shards = parts_of(model), {}
    for number, names in enumerate(parts.values(), start=1):
        path = folder / shard_name(number, len(parts))
        own = disk.file_of(names)
        if own is None or not _linked(path, own):
            write_shard(path, {name: disk.read(name) for name in names})
        shards[path.name] = {name: disk.bytes_of(name) for name in names}
    write_index(folder, shards)


def move_places(model: PreTrainedModel, moved: Mapping[str, str | None]) -> None:
    """Follows blocks to their new places, as `sparsity.move_blocks` does, in place: the files stay as they are."""
    disk = disk_of(model)
    if disk is not None:
        disk.places = moved_names(disk.places, moved)


def _linked(path: Path, file: Path) -> bool:
    try:
        path.hardlink_to(file)
    except OSError:  # a file system that knows no links
        return False
    return True


def _hand_back() -> None:
    """Gives the system what was freed: glibc keeps pieces of less than 32 MiB, which add up block by block."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _named(model: PreTrainedModel, parts: Iterable[str]) -> list[str]:
    known = parts_of(model)
    return [name for part in parts for name in known.get(part, [])]


def _fill(model: PreTrainedModel, names: Iterable[str], value: Callable[[str, Tensor], Tensor]) -> None:
    """Puts other tensors into parameters, wherever these stand."""
    homes: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        homes.setdefault(id(parameter), []).append(name)
    for name in names:
        old = model.get_parameter(name)
        new = nn.Parameter(value(name, old.data), requires_grad=old.requires_grad)
        for home in homes[id(old)]:
            owner, _, leaf = home.rpartition(".")
            setattr(model.get_submodule(owner), leaf, new)

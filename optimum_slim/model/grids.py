"""Which weights stand on a grid of integers, and on which: told beside the model, as floats do not tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.errors import ModelError
from optimum_slim.model.hook import SLIM_VERSION
from optimum_slim.model.rounding import rounded
from optimum_slim.model.sparsity import moved_names

GRIDS_FILE = "slim_grids.safetensors"
_HELD = "slim_grids"  # attribute of a model: no parameter and no buffer, so that the model stays a stock one
_TENSORS = ("scale", "zero_point", "input_scale", "input_zero_point")


@dataclass(frozen=True)
class Grid:
    """How a weight and what enters its linear become integers. The parameter itself holds the dequantized weight,
    `(integer - zero_point) * scale` in float32.

    Integers run from 0 to 2^bits - 1; a symmetric grid has its zero point in the middle, 128 of 8 bits. A scale below 0
    turns its group around: it then has an integer more above zero than below.
    """

    scale: Tensor  # float32 [outputs, groups], not 0
    zero_point: Tensor  # uint8 [outputs, groups]
    bits: int = 8
    group_size: int | None = None  # inputs that share a scale, the last of an output maybe fewer; None: all of it
    axis: int = 0  # of the parameter that counts outputs: 1 in a Conv1D
    input_scale: Tensor | None = None  # float32 [], of what enters the linear, for all of it; None: not known
    input_zero_point: Tensor | None = None  # uint8 []

    def integers(self, name: str, weight: Tensor) -> Tensor:
        """The integers of a weight on this grid, uint8 [outputs, inputs].

        Args:
            name: of the parameter, for the error. weight: as it stands in the model.

        Raises:
            ModelError: the weight is not on the grid: it changed after it was quantized.
        """
        rows = weight.detach().float().cpu().movedim(self.axis, 0)
        if self.scale.shape == (rows.shape[0], groups_of(rows.shape[1], self.group_size)):
            scale, zero_point = self.spread(self.scale, rows.shape[1]), self.spread(self.zero_point, rows.shape[1])
            found = rounded(rows, scale, zero_point.int(), self.bits)
            if torch.equal((found - zero_point.int()) * scale, rows):
                return found.to(torch.uint8)
        raise ModelError(
            f"{name} is not on the grid of {GRIDS_FILE}: the weight was changed after it was quantized; quantize last"
        )

    def floats(self, integers: Tensor) -> Tensor:
        """The weights that integers [outputs, inputs] stand for: float32 of that shape."""
        scale, zero_point = (self.spread(one, integers.shape[1]) for one in (self.scale, self.zero_point))
        return (integers.int() - zero_point.int()) * scale

    def spread(self, values: Tensor, inputs: int) -> Tensor:
        """What holds for groups [outputs, groups], for each input: [outputs, inputs]."""
        return values.repeat_interleave(self.group_size or inputs, 1)[:, :inputs]


def groups_of(inputs: int, group_size: int | None) -> int:
    """How many groups an output has."""
    return -(-inputs // (group_size or inputs))


def note_grids(
    config: PretrainedConfig, names: Mapping[str, int], bits: int = 8, group_size: int | None = None
) -> None:
    """Writes into `config`, in place, that these weights stand on a grid; what it says of others stays.

    Args:
        names: the axis of outputs by parameter, as in `named_parameters()`. bits, group_size: as in `Grid`.

    Raises:
        ModelError: what the config says so far makes no sense.
    """
    told = {name: {"bits": bits, "group_size": group_size, "axis": axis} for name, axis in names.items()}
    _write(config, grids_in(config) | told)


def grids_in(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """`{bits, group_size, axis}` of each weight on a grid, by the parameter's name; empty where there is none.

    Raises:
        ModelError: `slim.grids` is no such mapping.
    """
    slim = getattr(config, "slim", None) or {}
    listed = slim.get("grids", {}) if isinstance(slim, dict) else None
    if not isinstance(listed, dict):
        raise ModelError(f"config.json: slim.grids must map weights to grids, not be {listed!r}")
    for name, told in listed.items():
        if not isinstance(name, str) or not _is_told(told):
            raise ModelError(
                f"config.json: slim.grids.{name}: {told!r} is no grid; one is "
                "{bits: 1 to 8, group_size: a number or null, axis: 0 or 1}"
            )
    return dict(listed)


def grids_of(model: PreTrainedModel) -> dict[str, Grid]:
    """The grids that a model's weights stand on, by the parameter's name.

    Raises:
        ModelError: its config lists others than are there.
    """
    held, told = getattr(model, _HELD, {}), grids_in(model.config)
    if held.keys() != told.keys():
        lacking = sorted(told.keys() ^ held.keys())[0]
        raise ModelError(
            f"config.json: slim.grids and {GRIDS_FILE} disagree about {lacking}; load the folder with "
            "optimum_slim.load_model, and keep the two files together"
        )
    return dict(held)


def put_grids(model: PreTrainedModel, grids: Mapping[str, Grid]) -> None:
    """Gives a model these grids for good, in place, beside those that it has; its config lists them."""
    _hold(model, {**getattr(model, _HELD, {}), **grids})
    _write(model.config, grids_in(model.config) | settings_of(grids))


def settings_of(grids: Mapping[str, Grid]) -> dict[str, dict[str, Any]]:
    """What a config says of these grids, as `grids_in`."""
    return {name: {"bits": grid.bits, "group_size": grid.group_size, "axis": grid.axis} for name, grid in grids.items()}


def grids_within(model: PreTrainedModel, module: str) -> dict[str, Grid]:
    """The grids that the weights in one module stand on."""
    return {name: grid for name, grid in getattr(model, _HELD, {}).items() if name.startswith(f"{module}.")}


def move_grids(model: PreTrainedModel, moved: Mapping[str, str | None]) -> None:
    """Follows blocks to their new places, as `sparsity.move_blocks` does: renames the grids of their weights, in
    place, and forgets those of blocks that are gone."""
    _hold(model, moved_names(getattr(model, _HELD, {}), moved))
    if grids_in(model.config):
        _write(model.config, moved_names(grids_in(model.config), moved))


def save_grids(model: PreTrainedModel, folder: Path) -> None:
    """Writes the grids of a model into `folder`; nothing where it has none."""
    grids = grids_of(model)
    if grids:
        write_grids(folder / GRIDS_FILE, grids)


def write_grids(path: Path, grids: Mapping[str, Grid]) -> None:
    """Writes grids into a file; their settings stand elsewhere."""
    tensors = {f"{name}.{part}": getattr(grid, part) for name, grid in grids.items() for part in _TENSORS}
    save_file({key: one for key, one in tensors.items() if one is not None}, path)


def read_grids(path: Path, told: Mapping[str, Mapping[str, Any]]) -> dict[str, Grid]:
    """Reads grids of these settings back that `write_grids` wrote.

    Raises:
        ModelError: the file is damaged.
    """
    tensors = _tensors_in(path)
    parts: dict[str, dict[str, Any]]
    parts = {name: {part: tensors.get(f"{name}.{part}") for part in _TENSORS} for name in told}
    return {name: Grid(**parts[name], **settings) for name, settings in told.items()}


def load_grids(model: PreTrainedModel, folder: Path) -> None:
    """Reads the grids that the model's config lists, in place.

    Raises:
        ModelError: the file is not there, is damaged, or does not fit the config or the weights.
    """
    told, path = grids_in(model.config), folder / GRIDS_FILE
    if not told:
        return
    tensors = _tensors_in(path)
    parameters, found = dict(model.named_parameters(remove_duplicate=False)), {}
    for name, settings in told.items():
        parts: dict[str, Any] = {part: tensors[f"{name}.{part}"] for part in _TENSORS if f"{name}.{part}" in tensors}
        lacks = "config.json lists no weight of this model"
        wrong = _misfit(parts, parameters[name], settings) if name in parameters else lacks
        if wrong:
            raise ModelError(f"model: {path}: the grid of {name} does not fit: {wrong}")
        found[name] = Grid(**parts, **settings)
    _hold(model, found)


def why_not_keeping(config: PretrainedConfig) -> Iterator[str]:
    """Why a step that changes weights may not follow, if so, in words for the user."""
    if grids_in(config):
        yield "it would move weights off the grid that quantization put them on; put it before the step that quantizes"


def _tensors_in(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises a class of its Rust module
        raise ModelError(f"model: {path} cannot be read: {error}") from error


def _misfit(parts: Mapping[str, Tensor], weight: Tensor, settings: Mapping[str, Any]) -> str:
    """What is wrong with the tensors of a grid; empty where nothing is."""
    outputs, inputs = weight.movedim(settings["axis"], 0).shape
    groups = groups_of(inputs, settings["group_size"])
    kinds = {"scale": torch.float32, "zero_point": torch.uint8}
    for part, kind in kinds.items():
        for key, shape in ((part, (outputs, groups)), (f"input_{part}", ())):
            if key not in parts and key == part:
                return f"{key} is missing"
            if key in parts and (parts[key].dtype != kind or tuple(parts[key].shape) != shape):
                return f"{key} must be {kind} of shape {list(shape)}"
            if key in parts and part == "scale" and not (parts[key].isfinite() & (parts[key] != 0)).all():
                return f"{key} must be finite and not 0"
    return "" if ("input_scale" in parts) == ("input_zero_point" in parts) else "half of the input's grid is missing"


def _is_told(told: Any) -> bool:
    if not isinstance(told, dict) or told.keys() != {"bits", "group_size", "axis"}:
        return False
    size = told["group_size"]
    whole = all(type(told[key]) is int for key in ("bits", "axis")) and (size is None or type(size) is int)
    return whole and 1 <= told["bits"] <= 8 and told["axis"] in (0, 1) and (size is None or size >= 1)


def _hold(model: PreTrainedModel, grids: Mapping[str, Grid]) -> None:
    setattr(model, _HELD, dict(grids))


def _write(config: PretrainedConfig, listed: Mapping[str, Any]) -> None:
    config.slim = {"version": SLIM_VERSION, **(getattr(config, "slim", None) or {}), "grids": dict(listed)}

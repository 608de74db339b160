"""Train with 8-bit integers in mind: weights and activations are rounded in every forward pass as they will be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from accelerate.utils import gather
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.kernels.packing import MIDDLE
from optimum_slim.model.grids import Grid, note_grids, put_grids
from optimum_slim.model.matrices import axis_of
from optimum_slim.model.rounding import rounded, symmetric_scale
from optimum_slim.model.targets import idle_entries, mistakes_in_targets, targeted
from optimum_slim.training.fake_quantize import fake_quantize, fake_quantize_weight, grid_of_range, moved_range
from optimum_slim.training.trained import Step, Trained


@dataclass
class QuantizeAware(Trained):
    """Fake quantization of linears (Jacob et al., arXiv:1712.05877, section 3): weights symmetric with a scale per
    output, what enters a linear affine by a moving range, gradients straight through. The pass ends with weights on
    their grids, and deploy.precision: int8-static runs on just these integers.

    - quantize.aware: {delay: 0.1}
    """

    helps: ClassVar[tuple[str, ...]] = ("speed", "size")
    whole_weights: ClassVar[bool] = True

    delay: float = 0.1  # share of the pass before activations are rounded too; their ranges are watched from the start
    smoothing: float = 0.99  # share of a moving range that stays with each step
    targets: tuple[str, ...] = ("attention", "ffn")  # roles, or globs over the names of linears
    ignore: tuple[str, ...] = ()  # roles or globs that stay as they are

    def mistakes(self) -> Iterator[str]:
        for name in ("delay", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} must be at least 0 and below 1, not {getattr(self, name)}"
        yield from mistakes_in_targets(self.targets)

    def refusals(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        yield from idle_entries(config, self.targets, self.ignore)

    def quantized(self, model: PreTrainedModel) -> list[str]:
        return [f"{name}.weight" for name in targeted(model, self.targets, self.ignore)]

    def note(self, model: PreTrainedModel) -> None:
        names = targeted(model, self.targets, self.ignore)
        note_grids(model.config, {f"{name}.weight": axis_of(model.get_submodule(name)) for name in names})

    def begin(self, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        self.rounds_inputs, self.device = self.delay == 0, model.device
        self.ranges: dict[str, Tensor] = {}  # of what enters each linear: lowest and highest, float32 [2]
        self.seen: dict[str, Tensor] = {}  # the same of the step's batches so far
        self.before: dict[str, Any] = {}  # what stood in place of our `forward`
        for name in targeted(model, self.targets, self.ignore):
            linear: Any = model.get_submodule(name)
            self.before[name] = vars(linear).get("forward")
            linear.forward = self._forward(name, linear)

    def before_step(self, model: PreTrainedModel, step: Step) -> None:
        """The moving ranges take in what entered the linears in this step, in all processes."""
        names = list(self.seen)
        if names:
            ends = torch.stack([self.seen[name] for name in names])
            every = gather(ends[None])  # [processes, linears, 2]
            for name, low, high in zip(names, every[..., 0].amin(0), every[..., 1].amax(0), strict=True):
                self.ranges[name] = moved_range(self.ranges.get(name), torch.stack([low, high]), self.smoothing)
        self.seen = {}
        self.rounds_inputs = step.progress >= self.delay

    def state(self) -> dict[str, Any]:
        return {f"{name}.range": ends for name, ends in self.ranges.items()} | {"rounds_inputs": self.rounds_inputs}

    def load_state(self, state: dict[str, Any]) -> None:
        self.rounds_inputs = bool(state["rounds_inputs"])
        kept = {name: f"{name}.range" for name in self.before}
        self.ranges = {name: state[key].to(self.device) for name, key in kept.items() if key in state}

    def end(self, model: PreTrainedModel) -> None:
        """Puts each `forward` back as it was, and the weights on their grids."""
        grids = {}
        for name, forward in self.before.items():
            linear: Any = model.get_submodule(name)
            del linear.forward
            if forward is not None:
                linear.forward = forward
            grids[f"{name}.weight"] = _put_on_grid(linear, self.ranges.get(name))
        put_grids(model, grids)
        self.ranges, self.seen, self.before = {}, {}, {}

    def _forward(self, name: str, linear: Any) -> Callable[[Tensor], Tensor]:
        axis = axis_of(linear)

        def forward(x: Tensor) -> Tensor:
            weight = fake_quantize_weight(linear.weight, axis)
            return F.linear(self._input(name, x), weight.movedim(axis, 0), linear.bias)

        return forward

    def _input(self, name: str, x: Tensor) -> Tensor:
        """What enters a linear, watched, and rounded by its moving range; in the first step by what was seen in it."""
        low, high = torch.aminmax(x.detach().float())
        before = self.seen.get(name, torch.stack([low, high]))
        seen = self.seen[name] = torch.stack([torch.minimum(low, before[0]), torch.maximum(high, before[1])])
        if not self.rounds_inputs:
            return x
        return fake_quantize(x, *grid_of_range(self.ranges.get(name, seen)))


@torch.no_grad()
def _put_on_grid(linear: Any, ends: Tensor | None) -> Grid:
    """Rounds a weight to its grid, in place, and returns the grid."""
    axis = axis_of(linear)
    rows = linear.weight.data.movedim(axis, 0)
    scale = symmetric_scale(rows)
    rows.copy_((rounded(rows, scale, torch.tensor(MIDDLE)) - MIDDLE) * scale)
    grid = Grid(scale.cpu(), torch.full_like(scale, MIDDLE, dtype=torch.uint8).cpu(), axis=axis)
    if ends is None:
        return grid
    input_scale, input_zero_point = grid_of_range(ends.cpu())
    return replace(grid, input_scale=input_scale, input_zero_point=input_zero_point.to(torch.uint8))

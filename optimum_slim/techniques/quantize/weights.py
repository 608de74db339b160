"""Round weights to integers of few bits in groups that share a scale, without training; activations stay floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.data.stream import blocks_in_turn, products
from optimum_slim.errors import ModelError
from optimum_slim.model.anatomy import Block, anatomy_of, norms_first
from optimum_slim.model.channels import links_in
from optimum_slim.model.grids import Grid, note_grids, put_grids
from optimum_slim.model.matrices import axis_of, matrix
from optimum_slim.model.shape import Shape
from optimum_slim.model.targets import idle_entries, mistakes_in_targets, targeted
from optimum_slim.model.turns import blocks_to_change
from optimum_slim.techniques.quantize.awq import awq_scales, products_and_sizes
from optimum_slim.techniques.quantize.gptq import gptq
from optimum_slim.techniques.quantize.hqq import hqq
from optimum_slim.techniques.quantize.rtn import rtn
from optimum_slim.techniques.technique import Technique

SMALLEST_GROUP = 16  # that the file's blocks can hold
LIBRARIES = ("neural_compressor", "auto_round")  # of method autoround
Rounded = tuple[Tensor, Tensor, Tensor]  # integers, scale and zero point of a weight


@dataclass(frozen=True)
class QuantizeWeights(Technique):
    """Weights end on grids, whose integers `deploy.precision: int8-weights` and `int4-weights` store as they are.
    rtn rounds to nearest and hqq spares large errors, both without texts; gptq lets later weights make up for what
    rounding changes (arXiv:2210.17323); awq gives inputs that matter more of the integers (arXiv:2306.00978). These two
    go block by block, each on what the rounded ones before send. autoround learns which way to round
    (arXiv:2309.05516), through neural-compressor: `pip install 'optimum-slim[weights]'`.

    - quantize.weights: {method: gptq, bits: 4, group_size: 32}
    """

    helps: ClassVar[tuple[str, ...]] = ("speed", "size")

    method: Literal["rtn", "gptq", "awq", "hqq", "autoround"] = "gptq"  # how integers are found
    bits: Literal[4, 8] = 4  # of a weight
    group_size: int | None = 32  # inputs that share a scale, a multiple of 16; null: all inputs of an output
    symmetric: bool = True  # zero is the middle integer, and no zero points are stored
    searched: bool = True  # rtn, gptq, awq: scales may cut off a group's largest weights where that loses less
    ordered: bool = True  # gptq: inputs with the largest values come first
    iterations: int = 200  # autoround: steps for each block
    targets: tuple[str, ...] = ("attention", "ffn")  # roles, or globs over the names of linears
    ignore: tuple[str, ...] = ()  # roles or globs that stay as they are

    @property
    def streams(self) -> bool:  # type: ignore[override]
        return self.method != "autoround"

    def mistakes(self) -> Iterator[str]:
        size = self.group_size
        if size is not None and (size < SMALLEST_GROUP or size % SMALLEST_GROUP):
            yield f"group_size must be a multiple of {SMALLEST_GROUP}, as the file's blocks are, or null; not {size}"
        if self.method == "autoround" and self.bits == 8 and not self.symmetric:
            yield "symmetric must be true for autoround of 8 bits, which auto-round packs only so"
        if self.iterations < 1:
            yield f"iterations must be at least 1, not {self.iterations}"
        yield from mistakes_in_targets(self.targets)

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        yield from idle_entries(config, self.targets, self.ignore)
        anatomy = anatomy_of(config)
        if self.method == "awq" and norms_first(config) is None:
            yield f"awq needs a norm before each linear, and {config.model_type} has it behind: use gptq"
        if self.method == "autoround":
            if not anatomy.causal or config.model_type == "gpt2":
                yield f"autoround works on decoders whose linears are torch's, not on {config.model_type}: use gptq"
            lacking = [name for name in LIBRARIES if find_spec(name) is None]
            if lacking:
                yield f"autoround needs {' and '.join(lacking)}: pip install 'optimum-slim[weights]'"

    def note(self, model: PreTrainedModel) -> None:
        names = targeted(model, self.targets, self.ignore)
        axes = {f"{name}.weight": axis_of(model.get_submodule(name)) for name in names}
        note_grids(model.config, axes, self.bits, self.group_size)

    def asks(self) -> tuple[str, ...]:
        wanted = {"rtn": (), "hqq": (), "autoround": ("calibration_data", "seed", "workdir")}
        return wanted.get(self.method, ("calibration_data",))

    def apply(
        self, model: PreTrainedModel, calibration_data: Batches = (), seed: int = 0, workdir: Path = Path("autoround")
    ) -> None:
        names = targeted(model, self.targets, self.ignore)
        groups: dict[str, Any] = {"bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric}
        if self.method in ("rtn", "hqq"):
            for block in blocks_to_change(model):
                for name in block.within(names):
                    weight = matrix(model, name)
                    nearest = self.method == "rtn"
                    found = rtn(weight, **groups, searched=self.searched) if nearest else hqq(weight, **groups)
                    self._put(model, name, found)
        elif self.method == "gptq":
            for _, moments in blocks_in_turn(model, names, calibration_data, products):
                for name, moment in moments.items():
                    found = gptq(matrix(model, name), moment, **groups, ordered=self.ordered, searched=self.searched)
                    self._put(model, name, found)
        elif self.method == "awq":
            for block, statistics in blocks_in_turn(model, names, calibration_data, products_and_sizes):
                for name, moment in self._scaled(model, block, statistics).items():
                    found = rtn(matrix(model, name), **groups, searched=self.searched, moment=moment)
                    self._put(model, name, found)
        else:
            from optimum_slim.techniques.quantize.neural_compressor import autoround

            learnt = autoround(model, calibration_data, **groups, iterations=self.iterations, seed=seed, folder=workdir)
            lacking = [name for name in names if name not in learnt]
            if lacking:
                raise ModelError(f"auto-round leaves {', '.join(lacking)} as they are: name them under ignore")
            for name in names:
                self._put(model, name, learnt[name])

    @torch.no_grad()
    def _put(self, model: PreTrainedModel, name: str, found: Rounded) -> None:
        """Writes the floats that the integers stand for into a linear, and gives the model their grid."""
        integers, scale, zero_point = (one.cpu() for one in found)
        grid = Grid(scale, zero_point, self.bits, self.group_size, axis_of(model.get_submodule(name)))
        matrix(model, name).copy_(grid.floats(integers))
        put_grids(model, {f"{name}.weight": grid})

    def _scaled(self, model: PreTrainedModel, block: Block, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Moves AWQ's scales within a block, in place, and returns the mean of x^T x of what its linears read then.
        Values that several query heads read stay as they are, as in the published code."""
        moments = {name: one[:-1] for name, one in statistics.items()}
        for link in links_in(model, block):
            rounded = [name for name in link.readers if name in moments]
            if rounded and not link.copied:
                weight = torch.cat([matrix(model, name) for name in rounded])
                moment, sizes = moments[rounded[0]], statistics[rounded[0]][-1]
                scales = awq_scales(weight, moment, sizes, self.bits, self.group_size, self.symmetric)
                link.move(model, scales)
                moments |= dict.fromkeys(rounded, moment / scales / scales[:, None])
        return moments

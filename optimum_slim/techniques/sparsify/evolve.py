"""Move the zeros while the model trains: the smallest weights leave, as many grow elsewhere, and no more are kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.model.checkpoint import empty_model
from optimum_slim.model.matrices import matrix
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.techniques.sparsify.changing import ChangingZeros, gradient
from optimum_slim.techniques.sparsify.masks import block_sums, lowest_in_rows, lowest_two_of_four, spread
from optimum_slim.techniques.sparsify.settings import Sparsify
from optimum_slim.training.trained import Step

SMALL = 0.1  # SET's code draws grown weights as randn() / 10; here in units of the linear's root mean square


@dataclass
class SparsifyEvolve(ChangingZeros):
    """Now and then a share of each linear's blocks leaves, those whose weights are smallest in sum, and as many grow:
    anywhere, at small random values (SET, arXiv:1707.04780, algorithm 1), or at zero where the gradient is largest in
    sum (RigL, arXiv:1911.11134, algorithm 1). The share falls to nothing by RigL's cosine. The zeros are at first those
    of an earlier step, or random ones, with more kept in small linears (Erdos-Renyi, arXiv:1707.04780, eq. 1).

    - sparsify.evolve: {pattern: 4x1, grow: gradient}
    - sparsify.evolve: {start: random, ratio: 0.8, pattern: 4x4, grow: random, every: 100}
    """

    start: Literal["given", "random"] = "given"  # zeros of an earlier step, or random ones
    ratio: float | None = None  # share of the weights that are zero, for start: random
    grow: Literal["gradient", "random"] = "gradient"  # RigL's rule, or SET's
    zeta: float = 0.3  # share of the kept blocks that moves, at first
    every: int | None = None  # steps from one move to the next; null: an epoch
    end_: float = 0.75  # share of the pass after which the zeros stay where they are

    def linears(self) -> Sparsify:
        return super().linears() if self.ratio is None else replace(super().linears(), ratio=self.ratio)

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        if self.start == "random" and self.ratio is None:
            yield "ratio must be given with start: random, e.g. 0.8"
        if self.start == "given" and self.ratio is not None:
            yield f"ratio {self.ratio} has no say with start: given; leave it out, or take start: random"
        if not 0 <= self.zeta < 1:
            yield f"zeta must be at least 0 and below 1, not {self.zeta}"
        if not 0 < self.end_ <= 1:
            yield f"end must be above 0 and at most 1, not {self.end_}"
        if self.every is not None and self.every < 1:
            yield f"every must be at least 1, not {self.every}"

    def refusals(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        refused = list(super().refusals(config, teacher))
        yield from refused
        if self.start == "given" and not refused:
            listed = sparsity_in(config)
            for name in self.sparsified(empty_model(copy.deepcopy(config))):
                if listed.get(name) != self.pattern:
                    has = f"is sparse in {listed[name]}" if name in listed else "has no zeros yet"
                    yield (
                        f"start: given moves zeros that are there in pattern {self.pattern}, but {name} {has}; put "
                        "sparsify.magnitude or another before train, name other targets, or take start: random"
                    )
                    return

    def begin(self, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        super().begin(model, teacher)
        self.draw = torch.Generator().manual_seed(torch.initial_seed())
        if self.start == "random":
            shapes = [gone.shape for gone in self.gone.values()]
            for name, density in zip(self.gone, erdos_renyi(shapes, 1 - self.linears().ratio), strict=True):
                self.place(model, name, self._random_zeros(matrix(model, name), density))

    def before_step(self, model: PreTrainedModel, step: Step) -> None:
        share = cosine_share(step.progress, self.zeta, self.end_)
        if not share or step.number % (self.every or step.epoch):
            return
        # RigL's code leaves out the optimizer's step when zeros move. Here it follows, so that what grew learns at once
        # and no block that is kept is ever all zeros after a step.
        for name, before in self.gone.items():
            weight = matrix(model, name)
            sizes = block_sums(weight.abs(), self.pattern)
            if self.grow == "gradient":
                wishes = block_sums(gradient(model, name).abs(), self.pattern)
            else:
                wishes = self._drawn(sizes)
            after = moved(block_sums(before.float(), self.pattern) > 0, sizes, wishes, share, self.pattern == "2:4")
            gone = spread(after, self.pattern, *weight.shape)
            if self.grow == "random":
                size = SMALL * weight[~before].square().mean().sqrt()
                values = torch.randn(weight.shape, generator=self.draw).to(weight) * size
                weight.copy_(values.where(before & ~gone, weight))
            self.place(model, name, gone, step)

    def state(self) -> dict[str, Any]:
        return super().state() | {"draw": self.draw.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.draw.set_state(state["draw"])

    def _random_zeros(self, weight: Tensor, density: float) -> Tensor:
        """Places that are zero at the start; 2:4 keeps as many everywhere. bool [outputs, inputs]."""
        drawn = self._drawn(block_sums(weight, self.pattern))
        if self.pattern == "2:4":
            return lowest_two_of_four(drawn)
        gone = lowest_in_rows(drawn.view(1, -1), drawn.numel() - round(drawn.numel() * density))
        return spread(gone.view_as(drawn), self.pattern, *weight.shape)

    def _drawn(self, like: Tensor) -> Tensor:
        """Uniform random numbers, the same on every device."""
        return torch.rand(like.shape, generator=self.draw).to(like.device)


def erdos_renyi(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """The share of each linear that is kept: in proportion to (outputs + inputs) / (outputs * inputs)
    (arXiv:1707.04780, eq. 1), at most all of it, and `density` of all together.

    Args:
        shapes: outputs and inputs of each.
    """
    sizes = [rows * columns for rows, columns in shapes]
    sums = [rows + columns for rows, columns in shapes]
    full: set[int] = set()
    while True:
        rest = [index for index in range(len(shapes)) if index not in full]
        budget = density * sum(sizes) - sum(sizes[index] for index in full)
        scale = budget / sum(sums[index] for index in rest) if rest else 0.0
        over = {index for index in rest if scale * sums[index] > sizes[index]}
        if not over:
            return [1.0 if index in full else scale * sums[index] / sizes[index] for index in range(len(shapes))]
        full |= over


def cosine_share(progress: float, zeta: float, end: float) -> float:
    """The share of the kept blocks that moves: from `zeta` at the start to 0 at `end` (arXiv:1911.11134, section 3)."""
    return zeta / 2 * (1 + math.cos(math.pi * progress / end)) if progress < end else 0.0


def moved(gone: Tensor, sizes: Tensor, wishes: Tensor, share: float, two_of_four: bool) -> Tensor:
    """The blocks that are zero after some left and as many grew elsewhere (arXiv:1911.11134, algorithm 1).

    Args:
        gone: the blocks that are zero before, bool [rows, columns]. sizes: summed |w| of each. wishes: how much each
        should grow, at least 0. share: of the kept blocks that leaves, rounded down, the smallest first; SET's paper
        takes positive and negative weights apart, but blocks have no sign.
        two_of_four: as many grow in four neighbours of a row as have left there.

    Returns:
        bool [rows, columns].
    """
    leaving = int(share * int((~gone).sum()))
    left = lowest_in_rows(sizes.masked_fill(gone, torch.inf).view(1, -1), leaving).view_as(gone)
    # What stays cannot grow, and what has just left returns only where nothing else can.
    wishes = wishes.masked_fill(left, -1.0).masked_fill(~gone & ~left, -torch.inf)
    if two_of_four:
        lacking = -gone.shape[1] % 4
        fours = nn.functional.pad(wishes, (0, lacking), value=-torch.inf).unflatten(1, (-1, 4))
        room = nn.functional.pad(left, (0, lacking)).unflatten(1, (-1, 4)).sum(2, keepdim=True)
        places = fours.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
        grown = (places < room).flatten(1)[:, : gone.shape[1]]
    else:
        grown = lowest_in_rows(-wishes.view(1, -1), leaving).view_as(gone)
    return (gone | left) & ~grown

"""Zero more and more weights while the model trains, so that those that stay can make up for each loss in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim.model.matrices import matrix
from optimum_slim.techniques.sparsify.allocation import MOST
from optimum_slim.techniques.sparsify.changing import ChangingZeros, gradient, loaded
from optimum_slim.techniques.sparsify.masks import block_sums, lowest_in_rows, lowest_two_of_four, spread
from optimum_slim.techniques.sparsify.settings import Sparsify
from optimum_slim.training.trained import Step


@dataclass
class SparsifyGradual(ChangingZeros):
    """The share of zeros rises by a cubic rule, fast first and slowly at last (Zhu and Gupta, arXiv:1710.01878, eq. 1),
    then the rest of the pass trains what is left. By magnitude what left stays away. By movement (arXiv:2005.07683)
    blocks stay that training moves away from zero; one that left is still scored, by the weights that it had, and
    returns with them when others fall behind. Zeros of an earlier step stay.

    - sparsify.gradual: {ratio: 0.8, pattern: 4x1}
    - sparsify.gradual: {ratio: 0.9, pattern: 4x4, score: movement, end: 0.7}
    """

    ratio: float = 0.5  # share of the weights that are zero in the end
    start_ratio: float = 0.0  # and at the start
    begin_: float = 0.0  # share of the pass before the first zeros
    end_: float = 0.5  # share of the pass after which no more come
    every: int = 20  # steps from one rise to the next
    score: Literal["magnitude", "movement"] = "magnitude"  # movement suits fine-tuning to many zeros
    allocation: Literal["uniform", "global"] = "uniform"  # one threshold for all linears (global)

    def linears(self) -> Sparsify:
        return replace(super().linears(), ratio=self.ratio, allocation=self.allocation)

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        if not 0 <= self.start_ratio <= self.ratio:
            yield f"start_ratio must be at least 0 and at most ratio, {self.ratio}, not {self.start_ratio}"
        if not 0 <= self.begin_ < 1:
            yield f"begin must be at least 0 and below 1, not {self.begin_}"
        if not self.begin_ < self.end_ <= 1:
            yield f"end must be above begin, {self.begin_}, and at most 1, not {self.end_}"
        if self.every < 1:
            yield f"every must be at least 1, not {self.every}"

    def begin(self, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        super().begin(model, teacher)
        self.scores: dict[str, Tensor] = {}
        self.left: dict[str, Tensor] = {}
        if self.score == "movement":
            for name, given in self.gone.items():
                weight = matrix(model, name)
                # Zeros of an earlier step score below all others for good.
                self.scores[name] = torch.zeros_like(weight).masked_fill_(given, -torch.inf)
                self.left[name] = torch.zeros_like(weight)
        # Nothing has moved yet, so the first zeros go by magnitude in any case.
        self._rise(model, self.start_ratio, self._magnitudes(model))

    def before_step(self, model: PreTrainedModel, step: Step) -> None:
        for name, score in self.scores.items():
            score -= (matrix(model, name) + self.left[name]) * gradient(model, name)
        rising = self.begin_ < step.progress < self.end_ and step.number % self.every == 0
        if rising or step.first_from(self.end_):
            ratio = cubic_ratio(step.progress, self.ratio, self.start_ratio, self.begin_, self.end_)
            self._rise(model, ratio, self.scores or self._magnitudes(model), step)

    def place(self, model: PreTrainedModel, name: str, gone: Tensor, step: Step | None = None) -> None:
        if self.left:
            weight = matrix(model, name)
            weight += self.left[name]
            self.left[name] = weight.masked_fill(~gone, 0)
        super().place(model, name, gone, step)

    def state(self) -> dict[str, Any]:
        kept = {"scores": self.scores, "left": self.left}
        return super().state() | {f"{name}.{kind}": one for kind, all_ in kept.items() for name, one in all_.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.scores, self.left = loaded("scores", self.scores, state), loaded("left", self.left, state)

    def end(self, model: PreTrainedModel) -> None:
        super().end(model)
        self.scores, self.left = {}, {}

    def _magnitudes(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """|W|, below all others where it is gone."""
        return {name: matrix(model, name).abs().masked_fill_(gone, -torch.inf) for name, gone in self.gone.items()}

    def _rise(self, model: PreTrainedModel, ratio: float, scores: dict[str, Tensor], step: Step | None = None) -> None:
        """Places the zeros of a ratio, in place."""
        sums = {name: _block_scores(one, self.pattern) for name, one in scores.items()}
        groups = [[name] for name in sums]
        if self.allocation == "global":
            # Sizes of weights compare within a linear; what a movement saves of the loss compares as it is.
            sums = {name: _capped(one if scores is self.scores else _relative(one)) for name, one in sums.items()}
            groups = [list(sums)]
        for names in groups:
            for name, gone in zip(names, lowest_of_all([sums[name] for name in names], ratio), strict=True):
                self.place(model, name, spread(gone, self.pattern, *scores[name].shape), step)


def cubic_ratio(progress: float, ratio: float, start_ratio: float, begin: float, end: float) -> float:
    """The share of zeros at a time (arXiv:1710.01878, eq. 1): `start_ratio` until `begin`, `ratio` from `end` on."""
    left = 1 - min(max((progress - begin) / (end - begin), 0.0), 1.0)
    return ratio + (start_ratio - ratio) * left**3


def lowest_of_all(sums: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """The lowest blocks of some linears together, and all that are at -inf; none that are at inf.

    Args:
        sums: of the blocks of each, [rows, columns]. ratio: the share of blocks that leave, rounded down.

    Returns:
        bool of the same shapes.
    """
    flat = torch.cat([one.flatten() for one in sums])
    count = max(int(len(flat) * ratio), int(flat.isneginf().sum()))
    gone = lowest_in_rows(flat[None], count)[0] & ~flat.isposinf()
    parts = gone.split([one.numel() for one in sums])
    return [part.view_as(one) for part, one in zip(parts, sums, strict=True)]


def _block_scores(scores: Tensor, pattern: str) -> Tensor:
    """Summed scores of blocks; for 2:4 those of single weights, inf where two of the four are lower."""
    if pattern == "2:4":
        return scores.masked_fill(~lowest_two_of_four(scores) & ~scores.isneginf(), torch.inf)
    return block_sums(scores, pattern)


def _relative(sums: Tensor) -> Tensor:
    """Sums over their mean, in which those that are gone count as 0."""
    return sums / (sums.clamp(min=0).mean() or 1.0)


def _capped(sums: Tensor) -> Tensor:
    """Sums of which the highest are inf, so that no linear falls silent."""
    silent = sums.numel() - int(sums.numel() * MOST)
    return sums.flatten().index_fill(0, sums.flatten().topk(silent).indices, torch.inf).view_as(sums)

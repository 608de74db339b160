"""Finds the file that holds a budget: the layers that lose most stay in fp32, the fewest that do, and the fastest such
file is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from optimum_slim.deploy.benchmark import Target
from optimum_slim.deploy.budget import Budget, Judge, Losses, Tried, measured_speedup, not_good, too_slow
from optimum_slim.deploy.export import onnx_bytes
from optimum_slim.deploy.names import find_weights
from optimum_slim.deploy.precision import PREPARED, make_precision
from optimum_slim.deploy.sensitivity import Probe, fewest, measured, units_of
from optimum_slim.deploy.stored import read_graph
from optimum_slim.deploy.verify import load_ort
from optimum_slim.errors import QualityError

WORTH_A_LIBRARY = 1.1  # so much faster must int8-rows be to be chosen: without our kernels it is a little slower
ROUNDING = 1e-9  # what a difference of two accuracies may be off by: 0.94 - 0.89 is not 0.05


@dataclass(frozen=True)
class Search:
    """What it takes to make, judge and time files, as `choose_precision` knows it."""

    model: PreTrainedModel
    source: Path
    original: Path
    work: Path  # with the graph that is `PREPARED`
    budget: Budget
    max_quality_loss: float | None
    target: Target
    causal: bool
    judge: Judge | None
    options: Mapping[str, Mapping[str, Any]]  # by precision

    def tried(self, precision: str, high: Mapping[str, float], folder: Path) -> Tried:
        return Tried(precision, high, folder, self.judge.losses(folder) if self.judge else None)

    def holds(self, losses: Losses | None) -> bool:
        """Whether quality does, against the original and against the slim model."""
        if losses is None:
            return True
        most, limit = self.max_quality_loss, self.budget.quality_drop
        precise = most is None or losses.precision <= most + ROUNDING
        return precise and (limit is None or losses.drop <= limit + ROUNDING)

    def make(self, precision: str, high: Sequence[str], folder: str) -> Path:
        """The graph is read anew for each file, as making one changes it."""
        options = {**self.options[precision], "high": high}
        return make_precision(read_graph(self.work / PREPARED), self.source, self.work / folder, precision, options)

    def lifted(self, precision: str) -> list[Tried]:
        """Leaves more and more weights of a precision high, until its quality holds: of the last file it does, if of
        any."""
        judge = self.judge
        if judge is None or precision == "fp32" or not self.holds(judge.losses_in_fp32):
            return []
        units = units_of(self.model, find_weights(read_graph(self.source / "model.onnx"), self.model))
        probe = Probe.of(judge.slim, load_ort(self.source, type(judge.slim.task)))
        order, shares = measured(units, probe, lambda high: self.make(precision, high, f"{precision}-high"))
        tried: dict[int, Tried] = {}

        def holds(count: int) -> bool:
            high = [weight for unit in order[:count] for weight in unit.weights]
            folder = self.make(precision, high, f"{precision}-{count}-high")
            tried[count] = self.tried(precision, {weight: shares[weight] for weight in high}, folder)
            return self.holds(tried[count].losses)

        found = fewest(len(order), holds)
        last = [] if found is None else [tried.pop(found)]
        return [*tried.values(), *last]


def handicap(precision: str) -> float:
    """How many times faster than others a precision must be to be taken before them."""
    return WORTH_A_LIBRARY if precision == "int8-rows" else 1.0


def within(search: Search, folders: Mapping[str, Path], high: Mapping[str, float], obeyed: bool) -> Tried:
    """The fastest file that holds the budget.

    Args:
        folders: a file of each wanted precision. high: what they leave high. obeyed: as was decided before, so that
        nothing is sought.

    Raises:
        QualityError: there is none; says which end fails, and by how much.
    """
    budget = search.budget

    @cache
    def speedup_of(folder: Path) -> float:
        return measured_speedup(search.original, folder, search.target, search.causal)

    def speed(tried: Tried) -> tuple[float, int]:
        return speedup_of(tried.folder) / handicap(tried.precision), -onnx_bytes(tried.folder / "model.onnx")

    everything = [search.tried(name, high, folder) for name, folder in folders.items()]
    good = [one for one in everything if search.holds(one.losses)]
    lacking = [one for one in everything if one not in good and not obeyed]
    for one in sorted(lacking, key=speed, reverse=True) if len(folders) > 1 else lacking:
        if good and speed(one) <= max(map(speed, good)):
            break  # what is left high makes nothing faster
        found = search.lifted(one.precision)
        everything += found
        good += [one for one in found[-1:] if search.holds(one.losses)]
    if not good:
        in_fp32 = search.judge.losses_in_fp32 if search.judge else None
        raise QualityError(not_good(budget, search.max_quality_loss, everything, in_fp32, obeyed))
    best = max(good, key=speed) if len(good) > 1 else good[0]
    if budget.speedup is not None and speedup_of(best.folder) < budget.speedup:
        others = []
        for one in sorted(everything, key=lambda one: one.losses.drop if one.losses else 0.0):
            if one is not best:
                others.append((one, speedup_of(one.folder)))
                if others[-1][1] >= budget.speedup:
                    break  # what is faster loses more
        raise QualityError(too_slow(budget, best, speedup_of(best.folder), others))
    return best

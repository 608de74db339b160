"""A budget: what the deployed file may lose and must gain against the original, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimum_slim.deploy.benchmark import Target, benchmark, speedup
from optimum_slim.deploy.verify import load_ort
from optimum_slim.errors import QualityError
from optimum_slim.tasks.evaluate import Evaluation, Outcomes

FURTHER = "the same command with --set goes on from here"


@dataclass(frozen=True)
class Budget:
    """What the deployed file may lose and must gain against the original model in fp32; either may be left open. The
    layers that lose most stay in fp32, as few as it takes; where no file holds the budget the run ends with exit 1 and
    a resumable workspace."""

    quality_drop: float | None = None  # at most, on validation: 0.01 is a point of accuracy, or 1 % of perplexity
    speedup: float | None = None  # at least, at the first target; of decoders for one more token

    def mistakes(self) -> Iterator[str]:
        if self.quality_drop is None and self.speedup is None:
            yield "give quality_drop, speedup or both"
        if self.quality_drop is not None and self.quality_drop < 0:
            yield f"quality_drop must be at least 0, not {self.quality_drop}"
        if self.speedup is not None and self.speedup <= 0:
            yield f"speedup must be above 0, not {self.speedup}"


@dataclass(frozen=True)
class Losses:
    """How much worse a file is on validation: a difference of accuracies, or a share of a perplexity."""

    precision: float  # than the slim model's own fp32 file
    drop: float  # than the original model


@dataclass(frozen=True)
class Judge:
    """Compares what files make of validation texts with what the slim model and the original make of them."""

    slim: Evaluation  # with the slim model's own answers
    original: Evaluation  # with the original's

    @classmethod
    def of(cls, validation: Evaluation, slim: Path) -> Judge:
        """Runs the slim model's fp32 export.

        Args:
            validation: with the original's answers. slim: the folder.
        """
        return cls(validation.against(load_ort(slim, type(validation.task))), validation)

    def losses(self, folder: Path) -> Losses:
        """Of the file in a folder."""
        return self.losses_of(self.slim.outcomes(load_ort(folder, type(self.slim.task))))

    @property
    def losses_in_fp32(self) -> Losses:
        """Of the slim model's own fp32 file: what no precision can mend."""
        return self.losses_of(self.slim.original or {})

    def losses_of(self, outcomes: Outcomes) -> Losses:
        return Losses(self.slim.loss(outcomes), self.original.loss(outcomes))


@dataclass(frozen=True)
class Tried:
    """A file that was made and judged."""

    precision: str
    high: Mapping[str, float]  # weights in fp32, and why
    folder: Path
    losses: Losses | None  # None where there are no texts

    @property
    def named(self) -> str:
        return f"{self.precision}, {len(self.high) or 'no'} {'weight' if len(self.high) == 1 else 'weights'} in fp32"


def measured_speedup(original: Path, folder: Path, target: Target, causal: bool) -> float:
    """How many times faster a folder's file is than the original's at the first target: of decoders for a token."""
    files = {name: path / "model.onnx" for name, path in (("original", original), ("file", folder))}
    times = benchmark(files, target.first, causal)
    return speedup(times["original"][-1]["rounds"], times["file"][-1]["rounds"])["median"]


def too_slow(budget: Budget, good: Tried, reached: float, others: Sequence[tuple[Tried, float]]) -> str:
    """Says which end of a budget fails, and by how much.

    Args:
        good: the fastest file whose quality holds. reached: its speedup. others: further files with theirs.
    """
    wanted = budget.speedup or 0.0
    fastest, top = max([(good, reached), *others], key=lambda one: one[1])
    if top < wanted:
        told = f"budget.speedup: the fastest file ({fastest.named}) reaches {top:.2f}x"
        if fastest is not good:
            told += f" with {_lost(fastest)}, and on validation quality holds only at {reached:.2f}x ({good.named})"
    else:
        tried, speed = min((one for one in others if one[1] >= wanted), key=lambda one: _drop(one[0]))
        told = f"budget: on validation quality holds only at {reached:.2f}x ({good.named})"
        told += f"; at {speed:.2f}x ({tried.named}) there is {_lost(tried)}"
    return f"{told}. Wanted is {wanted:g}x{_allowed(budget)}: lower speedup, allow more loss, or remove more; {FURTHER}"


def not_good(
    budget: Budget, max_quality_loss: float | None, tried: Sequence[Tried], in_fp32: Losses | None, obeyed: bool
) -> str:
    """Says what the quality of the best file lacks, and what could mend it.

    Args:
        in_fp32: of the slim model's own file. obeyed: nothing was sought, as it was decided before.
    """
    best, limit = min(tried, key=_drop), budget.quality_drop
    alone, reasons = best.losses.precision if best.losses else 0.0, []
    if limit is not None and _drop(best) > limit:
        reasons.append(
            f"budget.quality_drop: on validation at best {_lost(best)} is reached ({best.named}), and wanted is "
            f"at most {limit:g}"
        )
    if max_quality_loss is not None and alone > max_quality_loss:
        reasons.append(
            f"deploy.max_quality_loss: precision alone costs {alone:.4f} ({best.named}), more than {max_quality_loss:g}"
        )
    own = in_fp32.drop if in_fp32 else 0.0
    if limit is not None and own > limit:
        reasons.append(
            f"the slim model itself loses {own:.4f} in fp32, which no precision mends: remove less, or train"
        )
    elif obeyed:
        reasons.append("deploy.decided says what is left in fp32: set it to null to search anew")
    return f"{'; '.join(reasons)}; {FURTHER}"


def held(
    budget: Budget, drop: float | None, latency: Sequence[Mapping[str, Any]], decided: Mapping[str, Any]
) -> dict[str, Any]:
    """The report's `budget`: what was wanted, what was reached, and what was done for it.

    Args:
        drop: on validation against the original. latency: rows of the report's `final`, the first target's first.
        decided: as in `Deploy.decided`.

    Raises:
        QualityError: in these rows the speed, which was just enough when the file was chosen, is not.
    """
    point = {key: latency[0][key] for key in ("batch", "tokens", "threads")}
    # A decoder's row of one more token stands behind that of its prefill.
    speed = [row for row in latency if point.items() <= row.items()][-1]["speedup"]["vs_fp32"]
    if budget.speedup is not None and speed["median"] < budget.speedup:
        raise QualityError(
            f"budget.speedup: {speed['median']:.2f}x was reached in the final measurement, and wanted is "
            f"{budget.speedup:g}x: lower speedup, or remove more; {FURTHER}"
        )
    return {
        "quality_drop": {"wanted": budget.quality_drop, "reached": drop},
        "speedup": {"wanted": budget.speedup, "reached": dict(speed)},
        **{key: dict(decided.get(key, {})) for key in ("high", "denser")},
    }


def _drop(tried: Tried) -> float:
    return tried.losses.drop if tried.losses else 0.0


def _lost(tried: Tried) -> str:
    return f"a drop of {tried.losses.drop:.4f}" if tried.losses else "quality that was not judged"


def _allowed(budget: Budget) -> str:
    return "" if budget.quality_drop is None else f" at a drop of at most {budget.quality_drop:g}"

"""Which precision to hand out: the fastest that keeps the slim model's quality on validation texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.deploy.agreement import gated, texts_to_compare
from optimum_slim.deploy.benchmark import Target, benchmark
from optimum_slim.deploy.blocks import BLOCK_BITS
from optimum_slim.deploy.budget import Budget, Judge
from optimum_slim.deploy.calibration import Method
from optimum_slim.deploy.export import onnx_bytes
from optimum_slim.deploy.integers import OnGrid, weights_on_grids
from optimum_slim.deploy.logits import Logits
from optimum_slim.deploy.measure import fastest_patterns
from optimum_slim.deploy.precision import PRECISIONS, make_precisions
from optimum_slim.deploy.verify import load_ort
from optimum_slim.deploy.within import Search, handicap, within
from optimum_slim.errors import QualityError
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.tasks.evaluate import Evaluation

Precision = Literal["auto", "fp32", "int8-dynamic", "int8-static", "int8-rows", "int8-weights", "int4-weights"]


@dataclass(frozen=True)
class Deploy:
    """How the slim model becomes the ONNX file that is served."""

    precision: Precision = "auto"  # auto: fastest of all; int8-static only after quantize.aware
    calibration_method: Method = "minmax"  # int8-static: how texts tell ranges that quantize.aware did not learn
    group_size: int | None = None  # int8-rows: inputs that share a scale, e.g. 64; null: all inputs of a row
    target: Target = field(default_factory=Target)  # the loads to be fast at
    logits: Logits = "last"  # of decoders: of the last token, which generation reads, or of all
    sparse: Literal["auto", "never", "always"] = "auto"  # int8-rows: zeros are left out where that is measured faster
    max_quality_loss: float | None = 0.02  # what precision may cost on validation; null accepts any
    decided: dict[str, Any] | None = None  # written by a run: what was measured and chosen; a re-run obeys it

    @property
    def settled(self) -> str:
        """The precision that the recipe names, or that an earlier run decided on; auto where none is chosen yet."""
        decided = (self.decided or {}).get("precision") or "auto"
        return decided if self.precision == "auto" else self.precision

    def mistakes(self) -> Iterator[str]:
        if self.max_quality_loss is not None and self.max_quality_loss < 0:
            yield f"max_quality_loss must be at least 0, not {self.max_quality_loss}"
        if self.group_size is not None and (self.group_size < 4 or self.group_size % 4):
            yield f"group_size must be a multiple of 4, not {self.group_size}"
        chosen = (self.decided or {}).get("precision")
        if chosen is not None and chosen not in PRECISIONS:
            yield f"decided.precision must be one of {', '.join(PRECISIONS)}, not {chosen!r}"
        level = (self.decided or {}).get("accuracy_level")
        if level not in (None, 1, 4):
            yield f"decided.accuracy_level must be 1 or 4, not {level!r}"
        for key in ("high", "denser"):
            weights = (self.decided or {}).get(key, {})
            if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
                yield f"decided.{key} must map weights to numbers, not be {weights!r}"


@dataclass(frozen=True)
class Chosen:
    """The file that is handed out."""

    folder: Path
    decided: dict[str, Any]  # for `Deploy.decided`
    drop: float | None = None  # of quality on validation against the original, where a budget asked for it


def choose_precision(
    model: PreTrainedModel,
    source: Path,
    work: Path,
    deploy: Deploy,
    validation: Evaluation | None,
    causal: bool,
    texts: Callable[[], Batches] | None = None,
    budget: Budget | None = None,
    original: Path | None = None,
) -> Chosen:
    """Makes the wanted precision, or for `auto` all of them, and decides.

    Args:
        model: the slim model.
        source: folder of its fp32 export, with its config.json.
        work: where the candidates are made, a folder each.
        deploy: the settings.
        validation: texts to judge on, under a budget with the original's answers; none where the recipe has no data.
        causal: the model has a cache, and decoding counts.
        texts: gives those to calibrate on; None where the recipe has none to train on.
        budget: what the file may lose and must gain against the original.
        original: folder of the original's fp32 export, where there is a budget.

    Returns:
        The chosen candidate. What was decided is its `precision`, for sparse weights their `patterns`, for a decoder in
        blocks its `accuracy_level` and why, and under a budget the weights in fp32, `high`, each with its layer's share
        of what low precision changes.

    Raises:
        QualityError: the wanted precision, or each of them, costs more than `max_quality_loss`; or the budget cannot be
            held.
        ModelError: a weight is no longer on its grid.
    """
    fixed = deploy.settled
    decided = (deploy.decided or {}).get("precision", "auto")
    grids = weights_on_grids(model)
    names = tried_by_auto(grids, texts is not None) if fixed == "auto" else [fixed]
    patterns = choose_patterns(model, deploy, causal) if "int8-rows" in names else {}
    calibration = texts() if texts is not None and "int8-static" in names else ()
    of_precision: dict[str, dict[str, Any]] = {
        "int8-static": {"texts": calibration, "method": deploy.calibration_method, "grids": grids},
        "int8-rows": {"group_size": deploy.group_size, "patterns": patterns, "grids": grids},
        "int8-weights": {"grids": grids},
        "int4-weights": {"grids": grids},
    }
    high = (deploy.decided or {}).get("high", {}) if decided == fixed else {}
    options = {name: of_precision.get(name, {}) | ({"high": high} if high else {}) for name in names}
    levels = {name: _known_level(deploy, name) for name in names if causal and name in BLOCK_BITS}
    for name in levels:
        options[name]["accuracy_level"] = levels[name].get("accuracy_level", 4)
    folders = make_precisions(source, work, options, deploy.logits, keep=budget is not None)
    for name in [one for one in levels if not levels[one]]:
        folders[name], levels[name] = gated(folders[name], texts_to_compare(validation, model.config.vocab_size))
        options[name]["accuracy_level"] = levels[name]["accuracy_level"]

    def chosen(name: str) -> Chosen:
        return Chosen(folders[name], _decided(name, patterns, high) | levels.get(name, {}))

    if budget is not None and original is not None:
        judge = Judge.of(validation, source) if validation is not None else None
        search = Search(
            model, source, original, work, budget, deploy.max_quality_loss, deploy.target, causal, judge, options
        )
        best = within(search, folders, high, obeyed=decided == fixed != "auto")
        drop = best.losses.drop if best.losses else None
        settled = _decided(best.precision, patterns, best.high) | levels.get(best.precision, {})
        return Chosen(best.folder, settled, drop)
    if len(names) == 1 and (deploy.max_quality_loss is None or validation is None or fixed == "fp32"):
        return chosen(fixed)
    losses = quality_losses(source, folders, validation)
    limit = deploy.max_quality_loss
    good = [name for name in names if limit is None or losses[name] <= limit]
    if not good:
        told = ", ".join(f"{name} loses {loss:.4f}" for name, loss in losses.items())
        raise QualityError(
            f"deploy.max_quality_loss: on validation {told}, more than {limit}. Choose another deploy.precision "
            "(auto tries all), raise max_quality_loss, or set it to null; the same command with --set goes on from here"
        )
    if len(good) == 1:
        return chosen(good[0])
    times = benchmark({name: folders[name] / "model.onnx" for name in good}, deploy.target.first, causal)

    def slowness(name: str) -> tuple[float, int]:
        # A decoder spends its time on single tokens; of equally fast files the smaller wins.
        return times[name][-1]["p50"] * handicap(name), onnx_bytes(folders[name] / "model.onnx")

    return chosen(min(good, key=slowness))


def tried_by_auto(grids: Mapping[str, OnGrid], texts: bool) -> list[str]:
    """The precisions that `auto` makes and compares: those that store the `grids`, and int8-static where training has
    learnt the ranges, and there are `texts` to find the others on. Without that it costs each run a calibration, for
    about the speed and quality of int8-dynamic."""
    learnt = texts and any(known.grid.input_scale is not None for known in grids.values())
    kinds = {(known.grid.bits, known.grid.group_size) for known in grids.values()}
    able = [name for name in PRECISIONS if all(stores(name, bits, size) for bits, size in kinds)]
    return [name for name in able if name != "int8-static" or learnt]


def stores(precision: str, bits: int, group_size: int | None) -> bool:
    """Whether a precision keeps the integers of such a grid, or in fp32 what they stand for."""
    if precision == "fp32" or precision in BLOCK_BITS:
        return True
    return group_size is None and (bits == 8 or precision != "int8-dynamic")


def _decided(name: str, patterns: Mapping[str, str], high: Mapping[str, float]) -> dict[str, Any]:
    told = {"patterns": dict(patterns) if name == "int8-rows" else {}, "high": dict(high)}
    return {"precision": name, **{key: value for key, value in told.items() if value}}


def _known_level(deploy: Deploy, precision: str) -> dict[str, Any]:
    """What an earlier run decided about the accuracy level of this precision; empty where nothing is."""
    decided = deploy.decided or {}
    if decided.get("precision") != precision or "accuracy_level" not in decided:
        return {}
    return {key: decided[key] for key in ("accuracy_level", "token_agreement") if key in decided}


def choose_patterns(model: PreTrainedModel, deploy: Deploy, causal: bool) -> dict[str, str]:
    """How each sparse weight is stored and run: in its pattern where that is measured to be faster, else dense."""
    known = sparsity_in(model.config)
    if deploy.sparse == "never" or not known:
        return {}
    if deploy.sparse == "always":
        return known
    decided = (deploy.decided or {}).get("patterns")
    if decided is not None:
        return {name: decided.get(name, "dense") for name in known}
    target = deploy.target
    rows = target.batch[0] * (1 if causal else target.tokens[0])
    return fastest_patterns(model, rows, target.threads[0])


def quality_losses(source: Path, folders: dict[str, Path], validation: Evaluation | None) -> dict[str, float]:
    """What each candidate loses against the slim model's own fp32 file."""
    if validation is None:
        return dict.fromkeys(folders, 0.0)
    kind = type(validation.task)
    own = validation.against(load_ort(source, kind))
    return {name: own.loss(own.outcomes(load_ort(folder, kind))) for name, folder in folders.items()}

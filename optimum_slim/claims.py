"""Measure again what a card claims: bytes and parameters always, quality where the texts are, speed where the original
is."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from optimum_slim.data.texts import load_texts
from optimum_slim.deploy.benchmark import Target, benchmark, feeds, open_session, speedup
from optimum_slim.deploy.export import export_folder, onnx_bytes
from optimum_slim.deploy.machine import environment
from optimum_slim.deploy.steadiness import checked
from optimum_slim.deploy.verify import difference, load_ort
from optimum_slim.errors import ModelError, SlimError
from optimum_slim.model.checkpoint import find_model, load_config, load_model, load_tokenizer
from optimum_slim.planning import fingerprint
from optimum_slim.recipe import read_recipe
from optimum_slim.report.card import write_card
from optimum_slim.report.report import Report, parameters_of
from optimum_slim.sources import local_path
from optimum_slim.tasks import task_named
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.task import Task

POINT = 0.005  # tolerance of accuracy-like figures; perplexities may differ by 1 %
SPEED = 0.15  # tolerance of a speedup, on a CPU like the claimed one
COSINE = 0.01  # tolerance of the agreement of ONNX Runtime with torch
STEADY = 0.005  # tolerance of what an answer depends on besides its text, as a share of the largest output

COMPARED = ("cosine", "next_token_agreement", "kl_divergence")  # how far a model is from the original

PROMISES = {
    "batch": "change of an answer with its batch",
    "padding": "change of an answer with its padding",
    "threads": "change of an answer with threads",
    "saturating": "products that can overflow without VNNI",
}


@dataclass(frozen=True)
class Claim:
    """One claimed figure and what was found; `holds` is None where it was not checked, and `note` says why."""

    what: str
    claimed: Any
    found: Any
    holds: bool | None
    note: str = ""


def check_claims(source: str, model: str | None = None, data: str | None = None) -> list[Claim]:
    """Checks the report and card of a finished folder against what its files do here and now.

    Args:
        source: folder or Hub id of a finished run.
        model: folder or Hub id of the original, where the recipe's name does not find it.
        data: folder, file or Hub id of the texts, likewise.

    Raises:
        SlimError: the folder cannot be checked at all: no report, or files that do not load.
    """
    folder = find_model(source)
    report = read_report(folder)
    task = task_named(report.task, load_config(folder))
    slim = load_model(folder)
    claims = [*_card_claims(folder, report), *_size_claims(folder, report, slim)]
    claims += _output_claims(folder, report, task, slim)
    with tempfile.TemporaryDirectory() as scratch:
        found = _original(report, model)
        original = None if found is None else export_folder(load_model(found), task, Path(scratch))
        claims += _quality_claims(folder, report, task, original, data)
        claims += _speed_claims(folder, report, task, original)
    return claims


def read_report(folder: Path) -> Report:
    """The report of a finished folder.

    Raises:
        ModelError: there is none, or it lacks what a finished run writes.
    """
    try:
        report = Report.read(folder)
        for row in (report.original, report.final):
            _ = row["file_bytes"], row["parameters"], row["quality"].items()
        _ = report.final["latency"][0]["p50"], report.model["sha256"], report.recipe["data"]["evaluation"]
        if "latency" in report.original:
            _ = report.original["latency"][0]["p50"], report.final["speedup"]["vs_fp32"]["median"]
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(f"{folder / 'slim_report.json'} is not the report of a finished run: {error!r}") from error
    return report


def _card_claims(folder: Path, report: Report) -> Iterator[Claim]:
    """The card must tell the report's figures: every line of it that holds a number, and the model index."""
    if not (folder / "README.md").is_file():
        yield Claim("card", "README.md", None, None, "there is no card")
        return
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_bytes((folder / "config.json").read_bytes())
        if (folder / "modules.json").exists():
            (Path(scratch) / "modules.json").write_bytes((folder / "modules.json").read_bytes())
        try:
            write_card(report, Path(scratch))
            right = ModelCard.load(Path(scratch) / "README.md")
            card = ModelCard.load(folder / "README.md")
        except Exception as error:  # of jinja2, PyYAML or huggingface_hub, for an edited card or report
            raise ModelError(f"{folder / 'README.md'} cannot be read against its report: {error!r}") from error
    shown = set(card.text.splitlines())
    changed = [line for line in right.text.splitlines() if any(c.isdigit() for c in line) and line not in shown]
    yield Claim("card: lines with figures", "the report's", changed or "the report's", not changed)
    told, known = card.data.to_dict(), right.data.to_dict()
    for key in ("model-index", "slim"):
        yield Claim(f"card: {key}", told.get(key), known.get(key), told.get(key) == known.get(key))


def _size_claims(folder: Path, report: Report, slim: PreTrainedModel) -> Iterator[Claim]:
    found, claimed = onnx_bytes(folder / "model.onnx"), report.final["file_bytes"]
    yield Claim("bytes of model.onnx", claimed, found, found == claimed)
    found, claimed = parameters_of(slim), report.final["parameters"]
    yield Claim("parameters", claimed, found, found == claimed)


def _output_claims(folder: Path, report: Report, task: type[Task], slim: PreTrainedModel) -> Iterator[Claim]:
    """The ONNX file computes what the torch model computes, as closely as it did when it was made."""
    session = open_session(folder / "model.onnx")
    outputs = session.run(None, feeds(session, "prefill", 1, 8))
    finite = all(np.isfinite(output).all() for output in outputs)
    yield Claim("outputs are finite", True, finite, finite)
    claimed = report.verify.get("deployed_vs_fp32", {}).get("cosine")
    found = difference(slim, load_ort(folder, task))["cosine"]
    holds = claimed is not None and found >= claimed - COSINE
    yield Claim("cosine of ONNX Runtime to torch", claimed, found, holds)
    promised = {key: report.verify[key] for key in PROMISES if key in report.verify}
    now = checked(folder, task) if promised else {}
    for key, value in promised.items():
        most = value if key == "saturating" else value + STEADY
        yield Claim(PROMISES[key], value, now[key], now[key] <= most)


def _original(report: Report, given: str | None) -> Path | None:
    """The original's own folder, where it is found and is the one that the report names."""
    name = str(given or report.recipe.get("model"))
    if given is None and report.model.get("revision") is None and local_path(name, "model") is None:
        return None
    try:
        folder = find_model(name)
    except SlimError:
        if given is not None:
            raise
        return None
    if fingerprint(folder) != report.model["sha256"]:
        if given is not None:
            raise ModelError(f"{given} is not the model that {report.model['name']} was: its files differ")
        return None
    return folder


def _quality_claims(
    folder: Path, report: Report, task: type[Task], original: Path | None, given: str | None
) -> Iterator[Claim]:
    claimed = report.final["quality"]
    settings = read_recipe({**report.recipe, "model": None}).data
    source = given or settings.source

    def unchecked(why: str) -> Iterator[Claim]:
        for name, value in claimed.items():
            yield Claim(name, value, None, None, why)

    if given is None and (source is None or (report.data.get("local") and local_path(source, "data") is None)):
        yield from unchecked("the texts are not here; name them with --data")
        return
    try:
        texts = load_texts(replace(settings, source=source), report.recipe["seed"])
    except SlimError as error:
        if given is not None:
            raise
        yield from unchecked(str(error))
        return
    if texts.fingerprint != report.data.get("sha256"):
        yield from unchecked("the texts are not those that were measured")
        return
    bound = task(load_config(folder), load_tokenizer(folder), replace(settings, source=source), folder)
    evaluation = Evaluation.of(bound, texts.evaluation(settings.evaluation))
    if original is not None:
        evaluation = replace(evaluation, original=evaluation.outcomes(load_ort(original, task)))
    slim = load_ort(folder, task)
    found = evaluation.quality(slim) if original is None else evaluation.compared(slim, load_ort(original, task))
    compared = COMPARED if original is None else ()
    for name, value in claimed.items():
        if name.split("/")[0] in compared:
            yield Claim(name, value, None, None, "it compares with the original; name it with --model")
            continue
        measured = found.get(name, math.nan)
        close = abs(measured - value) <= (0.01 * abs(value) if task.relative else POINT)
        yield Claim(name, value, measured, close)


def _speed_claims(folder: Path, report: Report, task: type[Task], original: Path | None) -> Iterator[Claim]:
    if "speedup" not in report.final:  # the original had no room
        return
    point, claimed = report.final["latency"][0], report.final["speedup"]["vs_fp32"]["median"]
    if original is None:
        yield Claim("speedup over fp32", claimed, None, None, "the original is not here; name it with --model")
        return
    target = Target([point["tokens"]], [point["batch"]], [point["threads"]])
    files = {"original": original / "model.onnx", "final": folder / "model.onnx"}
    rows = benchmark(files, target, decoder=task.name == "text-generation")
    found = speedup(rows["original"][0]["rounds"], rows["final"][0]["rounds"])["median"]
    same = environment()["cpu_flags"] == report.environment.get("cpu_flags")
    note = "" if same else "measured on another kind of CPU, so not judged"
    yield Claim("speedup over fp32", claimed, found, found >= claimed * (1 - SPEED) if same else None, note)

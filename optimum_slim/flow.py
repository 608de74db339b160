"""The whole product, in the order it happens: plan, slim step by step, hand to ONNX Runtime, prove, report."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim import processes
from optimum_slim.company import company, follow, placed, same_for_all, training_folder
from optimum_slim.deploy.budget import held
from optimum_slim.deploy.choose import choose_precision
from optimum_slim.deploy.denser import choose_denser, keep_dense, make_denser
from optimum_slim.deploy.export import export_folder
from optimum_slim.deploy.machine import environment
from optimum_slim.deploy.parts import file_parts, layer_rows
from optimum_slim.deploy.steadiness import checked
from optimum_slim.deploy.verify import load_ort, verify
from optimum_slim.model.checkpoint import carry_files, license_of, load_model, save_model
from optimum_slim.model.turns import begin_step, block_rows
from optimum_slim.original import Original, Say, figures
from optimum_slim.planning import Plan, PlannedStep, fingerprint, planned
from optimum_slim.recipe import Recipe
from optimum_slim.report.card import write_card
from optimum_slim.report.html import write_html
from optimum_slim.report.report import Report, Row, parameters_of, peak_rss_bytes, zeros_of
from optimum_slim.sources import local_path, told_name
from optimum_slim.supplies import Supplies
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.techniques.sparsify.settings import Sparsify
from optimum_slim.training.trainer import losses
from optimum_slim.workspace import Workspace

DENSE = "dense.safetensors"  # in the workspace: weights before one-shot sparsity, where the recipe ends with it
TORCH_BATCH = 16  # texts at a time when a torch model is judged


def slim(
    recipe: Recipe, output: str | Path, *, overwrite: bool = False, restart: bool = False, say: Say = lambda _: None
) -> Report:
    """Makes a slim model of the recipe's model and writes the folder that serves it. Where several processes were
    started together, e.g. by `accelerate launch`, each calls this: they share what is trained, the first does the rest.

    Args:
        recipe: what to do.
        output: the folder to write; `<output>.partial` beside it holds the work in progress.
        overwrite: replace an existing output.
        restart: forget an interrupted run instead of going on from it.
        say: told in a line what is being done.

    Raises:
        SlimError: see errors.py.
    """
    processes.join(cpu=recipe.device == "cpu")
    torch.set_num_threads(recipe.threads)
    plan = processes.agreed(lambda: planned(recipe))
    if processes.count() > 1:
        processes.agreed(lambda: same_for_all(plan))
    if processes.index() > 0:
        return follow(plan, lambda visit: Supplies(plan, visit))
    with processes.leading() as lead, Workspace(Path(output), plan, overwrite, restart) as work:
        supplies = Supplies(plan, work)
        original = Original(plan, work, say)
        model, report = _latest(plan, work)
        for step in plan.remaining(len(report.steps)):
            say(f"step {len(report.steps) + 1} of {len(plan.steps)}: {step.name}")
            begin_step(model, work.blocks(len(report.steps) + 1) if plan.streamed else None)
            begun, dense = time.monotonic(), _before_zeros(model, plan, len(report.steps))
            with company(lead, step, plan, work):
                step.technique.apply(model, **supplies.asked_by(step))
            keep_dense(dense, work.folder / DENSE)
            report.steps.append(_step_row(step, model, plan, original, time.monotonic() - begun))
            if trained := losses(work.folder / training_folder(step, plan)):
                report.steps[-1]["losses"] = trained
            work.checkpoint(model, plan.tokenizer, report)
        folder = _deploy(model if plan.streamed else model.cpu(), supplies, work, original, report, say)
        work.finish(folder)
        processes.told({"done": asdict(report)})
    return report


def _latest(plan: Plan, work: Workspace) -> tuple[PreTrainedModel, Report]:
    """The model and report after the last finished step, or the original and an empty report."""
    done = work.done()
    model = placed(load_model(done[1] if done else plan.folder, plan.streamed), plan)
    return model, Report.read(done[1]) if done else Report()


def _step_row(step: PlannedStep, model: PreTrainedModel, plan: Plan, original: Original, seconds: float) -> Row:
    settings = next(iter(_settings(step, plan).values()))
    blocks = block_rows(model)
    return {
        "technique": step.name,
        "settings": settings,
        "parameters": parameters_of(model),
        "zeros": zeros_of(model),
        "predicted_bytes": step.predicted_bytes,
        "quality_torch": original.quality(model, 1 if plan.streamed else TORCH_BATCH),
        "seconds": round(seconds, 1),
        "peak_rss_bytes": peak_rss_bytes(),
        **({"blocks": blocks} if blocks else {}),
    }


def _settings(step: PlannedStep, plan: Plan) -> dict[str, Any]:
    return _told(plan.recipe)["steps"][plan.steps.index(step)]


def _deploy(
    model: PreTrainedModel, supplies: Supplies, work: Workspace, original: Original, report: Report, say: Say
) -> Path:
    """Exports, chooses the precision, proves and measures; returns the finished folder."""
    plan = supplies.plan
    task, recipe = plan.task, plan.recipe
    validation = original.validation if recipe.budget is not None else plan.validation
    denser = _made_denser(model, plan, work, validation)
    say("exporting the slim model")
    fp32 = export_folder(model, type(task), work.scratch("fp32"))
    say(f"making {recipe.deploy.precision}")
    candidates = work.kept("precision")
    texts = (lambda: supplies.calibration_data) if plan.trains else None
    before = original.folder if recipe.budget is not None else None
    chosen = choose_precision(
        model, fp32, candidates, recipe.deploy, validation, plan.causal, texts, recipe.budget, before
    )
    decided = chosen.decided | ({"denser": denser} if denser else {})

    folder = work.scratch("final")
    save_model(model, folder, plan.tokenizer)
    for file in chosen.folder.glob("model.onnx*"):
        file.rename(folder / file.name)
    carry_files(plan.folder, folder)
    say("verifying")
    report.verify = verify(model, fp32, folder, type(task)) | checked(folder, type(task))
    say("measuring quality and speed")
    report.task = task.name
    report.recipe = _completed(plan, decided)
    report.model = _model_row(plan)
    report.data = _data_row(plan)
    report.environment = environment() | {
        "threads_of_training": recipe.threads,
        "processes_of_training": processes.count(),
    }
    report.original, report.baseline_int8, report.final = figures(model, plan, original, folder)
    report.samples = original.samples(load_ort(folder, type(task), recipe.threads))
    path = folder / "model.onnx"
    report.final |= {"precision": decided["precision"], "parts": file_parts(path), "layers": layer_rows(path)}
    if recipe.budget is not None:
        report.budget = held(recipe.budget, chosen.drop, report.final["latency"], decided)
    (folder / "slim_recipe.yaml").write_text(_yaml(report), encoding="utf-8")
    report.write(folder)
    write_card(report, folder)
    write_html(report, folder)
    return folder


def _before_zeros(model: PreTrainedModel, plan: Plan, index: int) -> dict[str, Tensor]:
    """Copies of the weights that a step of those that end the recipe is about to make sparse."""
    technique = plan.steps[index].technique
    if plan.streamed or index < plan.zeros_last or not isinstance(technique, Sparsify):
        return {}
    names = [f"{name}.weight" for name in technique.targeted(model)]
    return {name: model.get_parameter(name).detach().cpu().clone() for name in names}


def _made_denser(model: PreTrainedModel, plan: Plan, work: Workspace, validation: Evaluation | None) -> Row:
    """Gives weights back what they were before their zeros, in place: those that were decided before, or those that the
    budget needs; returns which, and why."""
    path, recipe = work.folder / DENSE, plan.recipe
    if not path.exists():
        return {}
    dense, decided, budget = load_file(path), recipe.deploy.decided, recipe.budget
    chosen: Row = {}
    if decided is not None:
        chosen = decided.get("denser", {})
    elif budget is not None and budget.quality_drop is not None and validation is not None:
        chosen = choose_denser(model, dense, validation, budget.quality_drop, TORCH_BATCH)
    if chosen:
        make_denser(model, dense, chosen)
    return chosen


def _model_row(plan: Plan) -> Row:
    """Which model it was; a snapshot of the Hub lies in a folder that is named by its commit."""
    source = str(plan.recipe.model)
    local = local_path(source, "model") is not None
    return {
        "name": told_name(source) if local else source.partition("@")[0],
        "revision": None if local else plan.folder.name,
        "sha256": fingerprint(plan.folder),
        "license": license_of(plan.folder),
    }


def _data_row(plan: Plan) -> Row:
    """Which texts they were, if any."""
    if plan.texts is None:
        return {}
    source = str(plan.recipe.data.source)
    local = local_path(source, "data") is not None
    row = {"name": told_name(source), "local": local, "sha256": plan.texts.fingerprint}
    if plan.extra is not None:
        names = [told_name(name) for name in plan.recipe.data.extra]
        row["extra"] = {"names": names, "sha256": plan.extra.fingerprint}
    return row


def _completed(plan: Plan, decided: Row) -> Row:
    """The recipe as it ran: every default and every measured decision."""
    return _told(replace(plan.recipe, deploy=replace(plan.recipe.deploy, decided=decided)))


def _told(recipe: Recipe) -> Row:
    """A recipe with every default, without a path of this machine."""
    content = recipe.complete()
    for place, key in ((content, "model"), (content, "teacher"), (content["data"], "source")):
        place[key] = place[key] and told_name(place[key])
    content["data"]["extra"] = [told_name(name) for name in content["data"]["extra"]]
    for step in content["steps"]:
        augment = (step.get("train") or {}).get("augment")
        if augment is not None:
            augment["masked_lm"] = augment["masked_lm"] and told_name(augment["masked_lm"])
    return content


def _yaml(report: Report) -> str:
    header = f"# made from {report.model['name']}, sha256 {report.model['sha256']}\n"
    return header + yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True)

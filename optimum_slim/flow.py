"""The whole product, in the order it happens: plan, slim step by step, hand to ONNX Runtime, prove, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim import processes
from optimum_slim.company import company, follow, placed, same_for_all, training_folder
from optimum_slim.data.statistics import Batches
from optimum_slim.deploy.baseline import optimum_int8
from optimum_slim.deploy.benchmark import benchmark, resident_bytes, speedup
from optimum_slim.deploy.budget import held
from optimum_slim.deploy.choose import choose_precision
from optimum_slim.deploy.denser import choose_denser, keep_dense, make_denser
from optimum_slim.deploy.export import export_folder, onnx_bytes
from optimum_slim.deploy.lowering import uses_kernels
from optimum_slim.deploy.machine import environment
from optimum_slim.deploy.parts import file_parts, layer_rows
from optimum_slim.deploy.steadiness import checked
from optimum_slim.deploy.verify import load_ort, verify
from optimum_slim.model.checkpoint import carry_files, license_of, load_config, load_model, save_model
from optimum_slim.planning import Plan, PlannedStep, fingerprint, planned
from optimum_slim.recipe import Recipe
from optimum_slim.report.card import write_card
from optimum_slim.report.html import write_html
from optimum_slim.report.report import Report, Row, latency_row, parameters_of, peak_rss_bytes, zeros_of
from optimum_slim.sources import local_path, told_name
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.task import Metrics
from optimum_slim.techniques.sparsify.settings import Sparsify
from optimum_slim.training.batches import TrainingData
from optimum_slim.training.cache import TeacherAtRest
from optimum_slim.training.trainer import losses
from optimum_slim.workspace import Visit, Workspace

DENSE = "dense.safetensors"  # in the workspace: weights before one-shot sparsity, where the recipe ends with it
TORCH_BATCH = 16  # texts at a time when a torch model is judged

Say = Callable[[str], None]


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
            begun, dense = time.monotonic(), _before_zeros(model, plan, len(report.steps))
            with company(lead, step, plan, work):
                step.technique.apply(model, **supplies.asked_by(step))
            keep_dense(dense, work.folder / DENSE)
            report.steps.append(_step_row(step, model, plan, original, time.monotonic() - begun))
            if trained := losses(work.folder / training_folder(step, plan)):
                report.steps[-1]["losses"] = trained
            work.checkpoint(model, plan.tokenizer, report)
        folder = _deploy(model.cpu(), plan, work, original, report, say)
        work.finish(folder)
        processes.told({"done": asdict(report)})
    return report


class Supplies:
    """What techniques may ask for by the names of `apply`'s parameters; each is made when first asked for."""

    def __init__(self, plan: Plan, work: Workspace | Visit):
        self.plan, self.work = plan, work

    def asked_by(self, step: PlannedStep) -> dict[str, Any]:
        made = {name: getattr(self, name) for name in step.asks if name != "workdir"}
        if "workdir" in step.asks:
            made["workdir"] = self.work.kept(training_folder(step, self.plan))
        return made

    @cached_property
    def calibration_data(self) -> Batches:
        """Tokenized texts from train, drawn with the seed, without labels."""
        recipe, task = self.plan.recipe, self.plan.task
        rows = self.plan.train_rows.shuffle(seed=recipe.seed)
        examples = task.examples(rows, recipe.data.calibration, labelled=False)
        return [task.collate(examples[start : start + 8]) for start in range(0, len(examples), 8)]

    @cached_property
    def training_data(self) -> TrainingData:
        task = self.plan.task
        sources = self.plan.extra.rows if self.plan.extra is not None else ()
        extra = [example for rows in sources for example in task.examples_of_texts(rows)]
        return TrainingData(task.examples(self.plan.train_rows), task.collate, extra)

    @property
    def train_rows(self) -> Dataset:
        return self.plan.train_rows

    @cached_property
    def teacher(self) -> PreTrainedModel:
        return self._load_teacher()

    @cached_property
    def teacher_at_rest(self) -> TeacherAtRest:
        """A pass that keeps the teacher's answers finds those that another pass was given."""
        folder = self.plan.teacher_folder
        return TeacherAtRest(
            load_config(folder), fingerprint(folder), self._load_teacher, self.work.kept("teacher-answers")
        )

    def _load_teacher(self) -> PreTrainedModel:
        return load_model(self.plan.teacher_folder).requires_grad_(False)

    @property
    def tokenizer(self) -> Any:
        return self.plan.tokenizer

    @property
    def task(self) -> Any:
        return self.plan.task

    @property
    def seed(self) -> int:
        return self.plan.recipe.seed

    @property
    def threads(self) -> int:
        return self.plan.recipe.threads


class Original:
    """The model as it was, in ONNX: what every figure is compared with."""

    def __init__(self, plan: Plan, work: Workspace, say: Say):
        self.plan, self.work, self.say = plan, work, say

    @cached_property
    def folder(self) -> Path:
        """Its fp32 export."""
        folder = self.work.kept("original")
        if not (folder / "done").exists():
            self.say("exporting the original model")
            export_folder(load_model(self.plan.folder), type(self.plan.task), folder)
            (folder / "done").touch()
        return folder

    @cached_property
    def int8(self) -> Path:
        """Optimum's own int8 of it."""
        return optimum_int8(self.folder, self.work.scratch("original-int8"))

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The texts to report on, with the original's answers to them."""
        plan = self.plan
        if plan.evaluation is None:
            return None
        self.say("evaluating the original model")
        outcomes = plan.evaluation.outcomes(load_ort(self.folder, type(plan.task), plan.recipe.threads))
        return replace(plan.evaluation, original=outcomes)

    @cached_property
    def validation(self) -> Evaluation | None:
        """The texts that choices are made by, with the original's answers."""
        plan = self.plan
        if plan.validation is None:
            return None
        self.say("judging the original model on validation")
        return replace(plan.validation, original=plan.validation.outcomes(load_ort(self.folder, type(plan.task))))

    def quality(self, model: Any, batch_size: int = 1) -> Metrics:
        """A model's figures, compared with the original's answers where the task does so; without a model the
        original's own."""
        if self.evaluation is None or self.evaluation.original is None:
            return {}
        if model is None:
            return self.evaluation.metrics(self.evaluation.original)
        return self.evaluation.quality(model, batch_size)


def _latest(plan: Plan, work: Workspace) -> tuple[PreTrainedModel, Report]:
    """The model and report after the last finished step, or the original and an empty report."""
    done = work.done()
    model = placed(load_model(done[1] if done else plan.folder), plan)
    return model, Report.read(done[1]) if done else Report()


def _step_row(step: PlannedStep, model: PreTrainedModel, plan: Plan, original: Original, seconds: float) -> Row:
    settings = next(iter(_settings(step, plan).values()))
    return {
        "technique": step.name,
        "settings": settings,
        "parameters": parameters_of(model),
        "zeros": zeros_of(model),
        "predicted_bytes": step.predicted_bytes,
        "quality_torch": original.quality(model, TORCH_BATCH),
        "seconds": round(seconds, 1),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _settings(step: PlannedStep, plan: Plan) -> dict[str, Any]:
    return _told(plan.recipe)["steps"][plan.steps.index(step)]


def _deploy(model: PreTrainedModel, plan: Plan, work: Workspace, original: Original, report: Report, say: Say) -> Path:
    """Exports, chooses the precision, proves and measures; returns the finished folder."""
    task, recipe = plan.task, plan.recipe
    validation = original.validation if recipe.budget is not None else plan.validation
    denser = _made_denser(model, plan, work, validation)
    say("exporting the slim model")
    fp32 = export_folder(model, type(task), work.scratch("fp32"))
    say(f"making {recipe.deploy.precision}")
    candidates = work.kept("precision")
    texts = (lambda: Supplies(plan, work).calibration_data) if plan.trains else None
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
    report.original, report.baseline_int8, report.final = _figures(model, plan, original, folder)
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
    if index < plan.zeros_last or not isinstance(technique, Sparsify):
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


def _figures(model: PreTrainedModel, plan: Plan, original: Original, folder: Path) -> tuple[Row, Row, Row]:
    """The rows of the original, of Optimum's int8 and of the result: size, quality, speed, memory."""
    kind, target, threads = type(plan.task), plan.recipe.deploy.target, plan.recipe.threads
    files = {"original": original.folder, "baseline_int8": original.int8, "final": folder}
    timed = {name: path / "model.onnx" for name, path in files.items()}
    if uses_kernels(timed["final"]):
        timed["without_kernels"] = timed["final"]
    times = benchmark(timed, target, plan.causal, without_kernels=("without_kernels",))
    before = load_model(plan.folder)
    rows: dict[str, Row] = {}
    for name, path in files.items():
        counted = model if name == "final" else before
        judged = None if name == "original" else load_ort(path, kind, threads)
        rows[name] = {
            "parameters": parameters_of(counted),
            "zeros": zeros_of(counted),
            "file_bytes": onnx_bytes(path / "model.onnx"),
            "quality": original.quality(judged),
            **latency_row(times[name]),
            "rss_bytes": resident_bytes(path / "model.onnx", target.batch[0], target.tokens[0]),
        }
    for row, *compared in zip(rows["final"]["latency"], *(times[name] for name in files), strict=True):
        fp32, int8, ours = compared
        row["speedup"] = {
            "vs_fp32": speedup(fp32["rounds"], ours["rounds"]),
            "vs_optimum_int8": speedup(int8["rounds"], ours["rounds"]),
        }
    rows["final"]["speedup"] = rows["final"]["latency"][0]["speedup"]
    if "without_kernels" in times:
        alone = {
            "latency": latency_row(times["without_kernels"])["latency"],
            "speedup": speedup(times["original"][0]["rounds"], times["without_kernels"][0]["rounds"]),
            "rss_bytes": resident_bytes(timed["final"], target.batch[0], target.tokens[0], kernels=False),
        }
        rows["final"]["without_kernels"] = alone
    return rows["original"], rows["baseline_int8"], rows["final"]


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

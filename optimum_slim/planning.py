"""Look ahead: find every mistake and foretell every size before any weight is loaded."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from datasets import Dataset
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from optimum_slim import processes
from optimum_slim.data.texts import Extra, Texts, load_extra, load_texts, text_columns
from optimum_slim.deploy.blocks import BLOCK_BITS, block_bytes
from optimum_slim.deploy.choose import stores
from optimum_slim.errors import DataError, RecipeError, SlimError
from optimum_slim.model.anatomy import anatomy_of
from optimum_slim.model.checkpoint import empty_model, find_model, load_config, load_tokenizer
from optimum_slim.model.grids import grids_in, why_not_keeping
from optimum_slim.model.memory import fits, streamed_bytes, streams
from optimum_slim.model.shape import Shape, shape_in, shape_of
from optimum_slim.model.shards import stored_bytes
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.model.surgery import reshape
from optimum_slim.model.vocabulary import kept_tokens_in
from optimum_slim.recipe import Recipe
from optimum_slim.report.report import parameters_of
from optimum_slim.tasks import TextClassification, task_named
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.task import Task
from optimum_slim.techniques import name_of
from optimum_slim.techniques.sparsify.settings import Sparsify
from optimum_slim.techniques.technique import Technique
from optimum_slim.training.sharding import why_not_sharded
from optimum_slim.training.teacher import unlike

BASE_BYTES = 700 * 2**20  # Python with torch, transformers and ONNX Runtime loaded
TEACHERS = {"teacher", "teacher_at_rest"}
NEEDS_TEXTS = ("calibration_data", "training_data")

T = TypeVar("T")


@dataclass(frozen=True)
class PlannedStep:
    """What is known of a step before it runs."""

    technique: Technique
    name: str
    asks: tuple[str, ...]
    shape: Shape
    parameters: int
    predicted_bytes: int  # of the ONNX file, were this the last step
    peak_bytes: int  # of memory while it runs


@dataclass(frozen=True)
class Plan:
    """A recipe that can run: the model's config, the texts, and each step's outcome in sizes."""

    recipe: Recipe
    folder: Path  # of the original model
    teacher_folder: Path
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    task: Task = field(repr=False)
    texts: Texts | None = field(repr=False)
    extra: Extra | None = field(repr=False)  # texts without labels, where the recipe names any
    models: tuple[Path, ...]  # folders of models that steps read besides the model and its teacher
    evaluation: Evaluation | None = field(repr=False)  # texts that the reported figures are measured on
    validation: Evaluation | None = field(repr=False)  # texts that choices are made by
    streamed: bool  # the model stays on the disk, and each step has one block at a time in memory
    original: PlannedStep = field(repr=False)
    steps: tuple[PlannedStep, ...] = field(repr=False)

    @property
    def original_runs(self) -> bool:
        """Whether the original has room in this machine's memory as an ONNX file, to be timed and compared."""
        return fits(self.original.predicted_bytes)

    def remaining(self, done: int) -> list[PlannedStep]:
        return list(self.steps[done:])

    @property
    def trains(self) -> bool:
        """Whether there are texts to calibrate or train on."""
        return self.texts is not None and self.texts.train is not None

    @property
    def train_rows(self) -> Dataset:
        """The rows of train; planning has refused steps that want them where there are none."""
        if self.texts is None or self.texts.train is None:
            raise DataError("data: there is no train split to calibrate or train on")
        return self.texts.train

    @property
    def disk_bytes(self) -> int:
        """Bytes that the workspace holds at its fullest, roughly."""
        last = [self.original, *self.steps][-1]
        first, fp32 = 4 * self.original.parameters, 4 * last.parameters
        # Steps leave a streamed model in the type that it came in.
        saved = stored_bytes(self.folder) if self.streamed else first
        # The original in fp32 and in int8; a new checkpoint is written before the one before it goes.
        held = (2 * first if self.original_runs else 0) + (2 * saved if self.steps else 0)
        # Weights and AdamW's two moments.
        training = [12 * step.parameters for step in self.steps if "training_data" in step.asks]
        held += sum(training) + max(training, default=0)
        held += fp32 if self.zeros_last < len(self.steps) else 0  # the model before its zeros
        # What a budget's search tries, each larger than the one before.
        held += 8 * fp32 if self.recipe.budget is not None else 0
        # The slim model in fp32; with less to compute and as candidates, or as the one file; and as a result.
        several = self.recipe.deploy.settled == "auto" or self.recipe.budget is not None
        return held + fp32 + (3 * fp32 if several else last.predicted_bytes) + saved

    @property
    def zeros_last(self) -> int:
        """From which step on the recipe only places zeros at once, so that what was before them can come back; the
        number of steps where it ends otherwise."""
        at = len(self.steps)
        while at and isinstance(self.steps[at - 1].technique, Sparsify):
            at -= 1
        return at

    @property
    def causal(self) -> bool:
        return self.task.name == "text-generation"


def planned(recipe: Recipe) -> Plan:
    """Checks a recipe against its model and texts.

    Raises:
        RecipeError: with everything that stands in the way.
    """
    mistakes: list[str] = []
    if recipe.model is None:
        raise RecipeError(["model: no model is given; name a folder or Hub id under `model`, or with --model"])
    folder = _tried(mistakes, lambda: find_model(str(recipe.model)))
    texts = _tried(mistakes, lambda: load_texts(recipe.data, recipe.seed)) if recipe.data.source else None
    config = _tried(mistakes, lambda: load_config(folder)) if folder else None
    kind = _tried(mistakes, lambda: task_named(recipe.task, config)) if config else None
    if config is None or kind is None or folder is None or _tried(mistakes, lambda: anatomy_of(config)) is None:
        raise RecipeError(mistakes)
    teacher = _tried(mistakes, lambda: find_model(str(recipe.teacher))) if recipe.teacher else folder
    tokenizer = _tried(mistakes, lambda: load_tokenizer(folder))
    task = kind(config, tokenizer, recipe.data, folder) if tokenizer is not None else None
    evaluation = validation = None
    if task is not None and texts is not None:
        evaluation = _tried(mistakes, lambda: Evaluation.of(task, texts.evaluation(recipe.data.evaluation)))
        validation = _tried(mistakes, lambda: Evaluation.of(task, texts.evaluation("validation")))
        trains = any("training_data" in technique.asks() for technique in recipe.steps)
        if texts.train is not None and trains and task.needs_labels:
            _tried(mistakes, lambda: task.examples(texts.train))
    mistakes += why_not_sharded()
    extra = _tried(mistakes, lambda: _extra(recipe, kind, texts)) if recipe.data.extra else None
    if extra is not None and not any(set(technique.asks()) & TEACHERS for technique in recipe.steps):
        mistakes.append("data.extra: no step asks a teacher, and without one texts that have no labels teach nothing")
    mistakes += _missing_texts(recipe, texts) + _too_long(recipe, config)
    _tried(mistakes, lambda: kept_tokens_in(config))
    taught_by = _tried(mistakes, lambda: load_config(teacher)) if teacher is not None else None
    if teacher is not None and taught_by is not None and recipe.teacher and tokenizer is not None:
        mistakes += _tried(mistakes, lambda: [*unlike(taught_by, config, load_tokenizer(teacher), tokenizer)]) or []
    model = _tried(mistakes, lambda: empty_model(copy.deepcopy(config)))
    streamed = model is not None and _streamed(recipe, model, mistakes)
    steps = _walk(recipe, model, taught_by or config, streamed, mistakes) if model is not None else []
    if recipe.budget is not None and steps and not fits(steps[0].predicted_bytes):
        mistakes.append(
            "budget: is measured against the original as an ONNX file in fp32, which this machine's memory has no room "
            "for; leave it out and name a precision"
        )
    mistakes += _undecidable(recipe, model) + _unstorable(recipe, model) if model is not None else []
    if mistakes or task is None or tokenizer is None or teacher is None:
        raise RecipeError(mistakes)
    models = tuple(find_model(source) for technique in recipe.steps for source in technique.models())
    return Plan(
        recipe,
        folder,
        teacher,
        config,
        tokenizer,
        task,
        texts,
        extra,
        models,
        evaluation,
        validation,
        streamed,
        steps[0],
        tuple(steps[1:]),
    )


def predicted_bytes(model: PreTrainedModel, precision: str) -> int:
    """Bytes of the model's weights in an ONNX file: linears and embeddings with their scales, the rest fp32."""
    total, seen, grids = 0, set(), grids_in(model.config)
    read_as_rows = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | Conv1D)}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            table = name == "weight" and isinstance(module, nn.Linear | Conv1D | nn.Embedding)
            if precision == "fp32" or not table:
                total += 4 * parameter.numel()
            elif precision in BLOCK_BITS and id(parameter) in read_as_rows:
                total += block_bytes(parameter.numel(), grids.get(f"{path}.{name}") or {"bits": BLOCK_BITS[precision]})
            else:
                total += parameter.numel() + 4 * parameter.shape[0]
    return total


def fingerprint(folder: Path) -> str:
    """sha256 over the files of a model's folder that make the model what it is."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".txt", ".model", ".jinja"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _streamed(recipe: Recipe, model: PreTrainedModel, mistakes: list[str]) -> bool:
    """Whether the model stays on the disk: where it is asked for, or where memory is short and all steps can do so."""
    whole = [f"steps.{i}.{name_of(one)}" for i, one in enumerate(recipe.steps) if not one.streams]
    if recipe.memory == "streamed":
        if whole:
            mistakes.append(f"memory: streamed: {', '.join(whole)} needs the whole model in memory; use memory: whole")
        if recipe.device == "cuda":
            mistakes.append("memory: streamed computes on the CPU; leave device out, or use memory: whole")
    return not whole and recipe.device != "cuda" and streams(recipe.memory, model)


def _walk(
    recipe: Recipe, model: PreTrainedModel, teacher: PretrainedConfig, streamed: bool, mistakes: list[str]
) -> list[PlannedStep]:
    """Takes an empty model through the steps; the first entry stands for the original."""
    precision = recipe.deploy.precision if recipe.deploy.precision != "auto" else "int8-dynamic"
    original = parameters_of(model)
    first = PlannedStep(Technique(), "original", (), shape_of(model), original, predicted_bytes(model, "fp32"), 0)
    walked = [first]
    for index, technique in enumerate(recipe.steps):
        name, before, held = name_of(technique), shape_in(model.config), streamed_bytes(model)
        refusals = [] if technique.keeps_grids else list(why_not_keeping(model.config))
        refusals += technique.refusals(model.config, before)
        refusals += [
            f"with: {name_of(one)}: {refusal}"
            for one in getattr(technique, "with_", ())
            for refusal in one.refusals(model.config, teacher)
        ]
        after = technique.shape_after(before) if not refusals else before
        refusals += [
            f"with: {name_of(one)} works on whole weights, which FSDP spreads over processes; start them without it"
            for one in getattr(technique, "with_", ())
            if one.whole_weights and processes.sharded()
        ]
        cuts = type(technique).shape_after is not Technique.shape_after
        removes = cuts and (getattr(technique, "ratio", None) or getattr(technique, "keep", None))
        if removes and not refusals and after == before:
            refusals = ["it removes nothing from this model: what stays is rounded up to all there is"]
        mistakes += [f"steps.{index}.{name}: {refusal}" for refusal in refusals]
        reshape(model, after)
        if not refusals:
            technique.note(model)
        parameters = parameters_of(model)
        memory = BASE_BYTES + (held if streamed else 4 * walked[-1].parameters)
        memory += 4 * original if TEACHERS & set(technique.asks()) else 0
        memory += 12 * parameters if "training_data" in technique.asks() else 0  # gradients and AdamW's two moments
        size = predicted_bytes(model, precision)
        walked.append(PlannedStep(technique, name, technique.asks(), after, parameters, size, memory))
    return walked


def _missing_texts(recipe: Recipe, texts: Texts | None) -> list[str]:
    mistakes = []
    wanting = [
        (f"steps.{index}.{name_of(technique)}", any(name in NEEDS_TEXTS for name in technique.asks()))
        for index, technique in enumerate(recipe.steps)
    ]
    settled = recipe.deploy.settled
    for where, wanted in [*wanting, ("deploy.precision: int8-static", settled == "int8-static")]:
        if wanted and recipe.data.source is None:
            mistakes.append(f"{where} needs texts: give `data:` a source, or pass --data")
        elif wanted and texts is not None and texts.train is None:
            mistakes.append(f"{where} needs a train split; {recipe.data.source} has only texts to evaluate on")
    if settled == "auto" and recipe.data.source is None:
        mistakes.append("deploy.precision: auto needs texts to judge by: give `data:` a source, or name a precision")
    if recipe.budget is not None and recipe.budget.quality_drop is not None and recipe.data.source is None:
        mistakes.append("budget.quality_drop needs texts to judge by: give `data:` a source, or pass --data")
    return mistakes


def _extra(recipe: Recipe, kind: type[Task], texts: Texts | None) -> Extra:
    """The texts without labels. A classifier of pairs is taught by pairs."""
    train = texts.train if texts is not None and kind is TextClassification else None
    return load_extra(recipe.data, len(text_columns(train, recipe.data.text)) if train is not None else None)


def _undecidable(recipe: Recipe, model: PreTrainedModel) -> list[str]:
    """Weights under `deploy.decided` that the slim model, empty as the steps leave it, has not."""
    known = {"high": {name for name, _ in model.named_parameters(remove_duplicate=False)}}
    known["denser"] = set(sparsity_in(model.config))
    return [
        f"deploy.decided.{key}: {name!r} is no {'sparse ' if key == 'denser' else ''}weight of the slim model"
        for key, names in known.items()
        for name in (recipe.deploy.decided or {}).get(key, {})
        if name not in names
    ]


def _unstorable(recipe: Recipe, model: PreTrainedModel) -> list[str]:
    """Whether the precision cannot keep the grids that the steps leave weights on."""
    settled = recipe.deploy.settled
    kinds = {(told["bits"], told["group_size"]) for told in grids_in(model.config).values()}
    return [
        f"deploy.precision: {settled} cannot store weights of {bits} bits in groups of {size or 'whole outputs'} as "
        "they are; int8-weights and int4-weights can"
        for bits, size in sorted(kinds, key=str)
        if settled != "auto" and not stores(settled, bits, size)
    ]


def _too_long(recipe: Recipe, config: PretrainedConfig) -> list[str]:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return []
    if config.model_type in ("roberta", "xlm-roberta"):
        positions -= (config.pad_token_id or 0) + 1
    wanted = {"data.max_length": recipe.data.max_length, "deploy.target.tokens": max(recipe.deploy.target.tokens)}
    if anatomy_of(config).causal:
        wanted["deploy.target.tokens"] += 1  # decoding is timed by the token after them
    return [f"{key}: {value} is more than the model's {positions} positions"
            for key, value in wanted.items() if value > positions]  # fmt: skip


def _tried(mistakes: list[str], make: Callable[[], T]) -> T | None:
    try:
        return make()
    except SlimError as error:
        if str(error) not in mistakes:
            mistakes.append(str(error))
        return None

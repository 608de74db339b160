"""What a step is given: texts, a teacher, a place for its files."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from optimum_slim.company import training_folder
from optimum_slim.data.statistics import Batches
from optimum_slim.model.checkpoint import load_config, load_model
from optimum_slim.planning import Plan, PlannedStep, fingerprint
from optimum_slim.training.batches import TrainingData
from optimum_slim.training.cache import TeacherAtRest
from optimum_slim.workspace import Visit, Workspace


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

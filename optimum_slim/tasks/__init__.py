"""The tasks, one file each. `TASKS` is the table of contents."""

from __future__ import annotations

from transformers import PretrainedConfig

from optimum_slim.errors import ModelError
from optimum_slim.tasks.feature_extraction import FeatureExtraction
from optimum_slim.tasks.fill_mask import FillMask
from optimum_slim.tasks.task import Task
from optimum_slim.tasks.text_classification import TextClassification
from optimum_slim.tasks.text_generation import TextGeneration
from optimum_slim.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "fill-mask": FillMask,
    "text-generation": TextGeneration,
    "feature-extraction": FeatureExtraction,
}


def task_named(name: str, config: PretrainedConfig) -> type[Task]:
    """The task of that name, or for `auto` the one that the model's class does.

    Raises:
        ModelError: the model has no head for it, or a head that is not supported.
    """
    architecture = (config.architectures or ["none"])[0]
    fit = next((task for task in TASKS.values() if architecture.endswith(task.architectures)), None)
    if fit is not None and (name == "auto" or TASKS[name] is fit):
        return fit
    asked = "" if name == "auto" else f"task: {name} asks for a model that ends in {TASKS[name].architectures[0]}, but "
    raise ModelError(f"{asked}the model is a {architecture}; supported are the tasks {', '.join(TASKS)}")

"""A torch model and its ONNX file are judged by the same code, whatever the batch size, set by set."""

from __future__ import annotations

import math

import numpy as np
import pytest
from datasets import Dataset

from optimum_slim.data.texts import Data
from optimum_slim.deploy.export import export
from optimum_slim.deploy.verify import load_ort
from optimum_slim.errors import ModelError
from optimum_slim.tasks import TASKS, task_named
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.task import loss_of_quality
from tests.tiny import rows_for, tiny, tiny_config, tiny_tokenizer

MODELS = [
    ("bert", "ForSequenceClassification"),
    ("distilbert", "ForTokenClassification"),
    ("roberta", "ForMaskedLM"),
    ("xlm-roberta", "Model"),
    ("qwen3", "ForCausalLM"),
]


def bound(model, folder=None):
    data = Data(max_length=16)
    return task_named("auto", model.config)(model.config, tiny_tokenizer(model.config.model_type), data, folder)


@pytest.mark.parametrize(("family", "head"), MODELS)
def test_figures_are_the_same_in_torch_and_onnx_and_at_any_batch_size(family, head, tmp_path):
    model = tiny(family, head)
    task = bound(model, tmp_path)
    evaluation = Evaluation.of(task, {"": Dataset.from_list(rows_for(task.name, 24))})
    export(model, type(task), tmp_path / "model.onnx")
    model.config.save_pretrained(tmp_path)
    figures = evaluation.quality(model)
    assert task.metric in figures
    assert all(math.isfinite(value) for value in figures.values())
    assert evaluation.quality(model, batch_size=5) == pytest.approx(figures, rel=1e-3)
    assert evaluation.quality(load_ort(tmp_path, type(task))) == pytest.approx(figures, rel=1e-3)


def test_outcomes_keep_the_order_of_the_texts(tmp_path):
    model = tiny("roberta", "Model")
    task = bound(model, tmp_path)
    rows = Dataset.from_dict({"text": [row["text"] for row in rows_for("text-classification", 24)]})
    assert len({len(text.split()) for text in rows["text"]}) > 5
    together = Evaluation.of(task, {"": rows}).outcomes(model, batch_size=7)[""]
    alone = [Evaluation.of(task, {"": rows.select([i])}).outcomes(model)[""][0] for i in range(24)]
    assert np.allclose(together, alone, atol=1e-5)
    assert not np.allclose(alone[0], alone[1], atol=1e-2)


def test_named_sets_have_figures_of_their_own():
    model = tiny("bert")
    task = bound(model)
    rows = Dataset.from_list(rows_for(task.name, 24))
    sets = {"first": rows.select(range(8)), "rest": rows.select(range(8, 24))}
    named, whole = Evaluation.of(task, sets).quality(model), Evaluation.of(task, {"": rows}).quality(model)
    assert named.keys() == {"accuracy/first", "accuracy/rest"}
    assert (named["accuracy/first"] * 8 + named["accuracy/rest"] * 16) / 24 == pytest.approx(whole["accuracy"])


@pytest.mark.parametrize(
    ("name", "before", "after", "loss"),
    [
        ("text-classification", {"accuracy": 0.9}, {"accuracy": 0.88}, 0.02),
        ("text-classification", {"accuracy": 0.9}, {"accuracy": 0.95}, -0.05),
        ("text-classification", {"accuracy/a": 0.9, "accuracy/b": 0.8}, {"accuracy/a": 0.9, "accuracy/b": 0.7}, 0.1),
        ("text-generation", {"perplexity": 50.0}, {"perplexity": 51.0}, 0.02),
        ("text-generation", {"perplexity": 50.0}, {"perplexity": math.inf}, math.inf),
        ("text-generation", {"perplexity": 50.0}, {"perplexity": math.nan}, math.inf),
        ("text-generation", {"perplexity": 50.0, "next_token_agreement": 1.0},
         {"perplexity": 50.0, "next_token_agreement": 0.1}, 0.0),
    ],
)  # fmt: skip
def test_loss_of_quality_is_of_the_deciding_figure_in_its_worst_set(name, before, after, loss):
    family, head = {"text-classification": ("bert", "ForSequenceClassification"), "text-generation": ("gpt2", None)}[
        name
    ]
    task = TASKS[name](tiny_config(family, head), tiny_tokenizer(family), Data(), None)
    assert loss_of_quality(task, before, after) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("family", "head", "name"),
    [
        *((family, head, None) for family, head in MODELS),
        ("gpt2", None, "text-generation"),
        ("opt", None, "text-generation"),
        ("roberta", "Model", "feature-extraction"),
    ],
)
def test_a_models_class_tells_its_task(family, head, name):
    config = tiny_config(family, head)
    found = task_named("auto", config)
    assert task_named(found.name, config) is found
    assert config.architectures[0].endswith(found.architectures)
    assert name in (None, found.name)


@pytest.mark.parametrize(
    ("family", "head", "name"),
    [
        ("bert", "ForSequenceClassification", "text-generation"),
        ("gpt2", None, "feature-extraction"),
        ("bert", "ForQuestionAnswering", "auto"),
    ],
)
def test_a_task_that_the_model_has_no_head_for_is_a_model_error(family, head, name):
    config = tiny_config(family, head)
    with pytest.raises(ModelError, match=config.architectures[0]):
        task_named(name, config)

"""The contract that every technique keeps. Whoever adds one calls these from a test of theirs:

@pytest.mark.parametrize("family", FAMILIES)
def test_mine_keeps_the_contract(family, tmp_path):
    check_idle(Mine(ratio=0.0), tiny(family), tmp_path)
    check_contract(Mine(ratio=0.5), tiny(family), tmp_path)
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from optimum_slim.data.texts import Data
from optimum_slim.deploy.export import export
from optimum_slim.deploy.verify import load_ort
from optimum_slim.model.checkpoint import load_model, save_model
from optimum_slim.model.shape import shape_in, shape_of
from optimum_slim.tasks import task_named
from optimum_slim.techniques.technique import Technique
from optimum_slim.training.batches import TrainingData
from optimum_slim.training.cache import TeacherAtRest
from tests.tiny import answers, rows_for, tiny_tokenizer, token_batches

AUTO = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "fill-mask": transformers.AutoModelForMaskedLM,
    "text-generation": transformers.AutoModelForCausalLM,
    "feature-extraction": transformers.AutoModel,
}
CLOSE = 1e-4  # of the largest output


def check_idle(technique: Technique, model: PreTrainedModel, folder: Path) -> None:
    """Settings that remove nothing change nothing: not a bit of the answers, not a size in the config."""
    before, shape = all_answers(model), shape_of(model)
    apply(technique, model, folder)
    assert same(before, all_answers(model))
    assert shape_in(model.config) == shape_of(model) == shape


def check_contract(technique: Technique, model: PreTrainedModel, folder: Path, exported: bool = True) -> None:
    """Applies the technique and checks everything that must hold afterwards. The embeddings are frozen before, and
    must still be so.

    Args:
        technique: with settings that change this model. model: changed in place.
        folder: an empty one to write into. exported: also check the ONNX file, which takes seconds.
    """
    model.get_input_embeddings().requires_grad_(False)
    before, kinds, trains = all_answers(model), module_kinds(model), gradients(model)
    foretold = technique.shape_after(shape_of(model))
    apply(technique, model, folder / "work")
    assert not same(before, all_answers(model)), "the technique changed nothing"
    assert shape_in(model.config) == shape_of(model) == foretold
    check_plain(model, kinds, trains)
    check_saved(model, folder / "saved")
    if exported:
        check_exported(model, folder / "exported")


def check_plain(model: PreTrainedModel, kinds: set[tuple[str, type]], trains: dict[str, bool]) -> None:
    """No hook, wrapper or parametrization is left, and what could be trained still can: a stock model.

    Args:
        kinds, trains: `module_kinds` and `gradients` from before.
    """
    assert module_kinds(model) <= kinds
    assert gradients(model) == {name: trains[name] for name in gradients(model)}
    assert not model.training
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        assert not any(hooks), f"{name} has hooks"
        assert not parametrize.is_parametrized(module), f"{name} is parametrized"
        forward = vars(module).get("forward")  # transformers puts back a bound method after recording hidden states
        assert forward is None or forward.__func__ is type(module).forward, f"{name}.forward is wrapped"
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features), name


def check_saved(model: PreTrainedModel, folder: Path) -> None:
    """Saved and loaded, by us or by plain transformers, the model gives the same answers."""
    save_model(model, folder)
    before = all_answers(model)
    again = load_model(folder)
    assert same(before, all_answers(again))
    assert shape_in(again.config) == shape_of(again) == shape_of(model)
    assert same(before, all_answers(AUTO[task_named("auto", model.config).name].from_pretrained(folder).eval()))


def check_exported(model: PreTrainedModel, folder: Path) -> None:
    """The ONNX file gives close answers through the stock ORTModel of the task."""
    task = task_named("auto", model.config)
    export(model, task, folder / "model.onnx")
    model.config.save_pretrained(folder)
    for mine, theirs in zip(all_answers(model), all_answers(load_ort(folder, task)), strict=True):
        assert (mine - theirs).abs().max() <= CLOSE * mine.abs().max()


def apply(technique: Technique, model: PreTrainedModel, folder: Path) -> None:
    """Applies a technique with the supplies that it asks for."""
    supplies = supplies_for(model, folder)
    technique.apply(model, **{name: supplies[name] for name in technique.asks()})


def supplies_for(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """All that a technique may ask for, made for a tiny model; the teacher is the model as it is now."""
    tokenizer = tiny_tokenizer(model.config.model_type)
    task = task_named("auto", model.config)(model.config, tokenizer, Data(max_length=16), folder)
    rows = Dataset.from_list(rows_for(task.name, 32))
    unlabelled = task.examples(rows, 16, labelled=False)
    return {
        "calibration_data": [task.collate(unlabelled[start : start + 8]) for start in range(0, len(unlabelled), 8)],
        "training_data": TrainingData(task.examples(rows), task.collate),
        "train_rows": rows,
        "teacher": (teacher := copy.deepcopy(model).requires_grad_(False)),
        "teacher_at_rest": TeacherAtRest(teacher.config, "the model", lambda: teacher, folder / "answers"),
        "tokenizer": tokenizer,
        "task": task,
        "seed": 0,
        "threads": 2,
        "workdir": folder,
    }


def all_answers(model: Any) -> list[Tensor]:
    return [answers(model, batch) for batch in token_batches()]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def module_kinds(model: PreTrainedModel) -> set[tuple[str, type]]:
    return {(name, type(module)) for name, module in model.named_modules()}


def gradients(model: PreTrainedModel) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}

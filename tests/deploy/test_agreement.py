"""Activations are rounded where that changes few tokens; what was decided is told, and obeyed."""

from __future__ import annotations

import onnx
import pytest
import torch

from optimum_slim.deploy import agreement
from optimum_slim.deploy.agreement import gated, texts_to_compare, token_agreement
from optimum_slim.deploy.choose import Deploy, choose_precision
from optimum_slim.deploy.export import export_folder
from optimum_slim.deploy.precision import make_precisions
from optimum_slim.deploy.wiring import attribute_of
from optimum_slim.kernels.blocked import BLOCKED_OPERATORS, ROUNDED, STOCK
from optimum_slim.tasks import TextGeneration, task_named
from tests.tiny import tiny, token_batches


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model = tiny("llama")
    return model, export_folder(model, TextGeneration, tmp_path_factory.mktemp("fp32"))


def levels_in(folder):
    """Of products in blocks; those that our kernels run round their activations."""
    nodes = onnx.load(folder / "model.onnx").graph.node
    products = [node for node in nodes if node.op_type in (STOCK, *BLOCKED_OPERATORS)]
    return {attribute_of(node, "accuracy_level", ROUNDED) for node in products}


def test_agreement_is_the_share_of_real_tokens_with_the_same_choice(made):
    model, _ = made
    other = tiny("llama")
    with torch.no_grad():
        other.lm_head.weight[:64] = 0
    batches = token_batches()
    same = [
        (model(**batch).logits.argmax(-1) == other(**batch).logits.argmax(-1))[batch["attention_mask"].bool()]
        for batch in batches
    ]
    assert token_agreement(model, other, batches) == pytest.approx(float(torch.cat(same).float().mean()))
    assert token_agreement(model, model, batches) == 1
    assert 0 < token_agreement(model, other, batches) < 1


@pytest.mark.parametrize(("least", "level"), [(0.5, 4), (1.1, 1)])
def test_activations_stay_floats_where_too_many_tokens_would_change(made, least, level, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "LEAST", least)
    _, source = made
    folder = make_precisions(source, tmp_path, {"int4-weights": {}})["int4-weights"]
    found, told = gated(folder, token_batches())
    assert told["accuracy_level"] == level
    assert 0.5 < told["token_agreement"] <= 1
    assert levels_in(found) == {level}


def test_what_was_decided_is_told_and_obeyed(made, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "LEAST", 0.5)  # a random model hardly prefers one token
    model, source = made
    chosen = choose_precision(model, source, tmp_path, Deploy("int8-weights"), None, True)
    assert chosen.decided["precision"] == "int8-weights"
    assert chosen.decided["accuracy_level"] == 4
    assert 0.5 < chosen.decided["token_agreement"] <= 1
    monkeypatch.setattr("optimum_slim.deploy.choose.gated", None)
    decided = {"precision": "int8-weights", "accuracy_level": 1, "token_agreement": 0.9}
    again = choose_precision(model, source, tmp_path, Deploy("int8-weights", decided=decided), None, True)
    assert again.decided == decided
    assert levels_in(again.folder) == {1}


def test_an_encoder_has_no_tokens_to_choose(tmp_path):
    model = tiny("bert")
    source = export_folder(model, task_named("auto", model.config), tmp_path / "fp32")
    chosen = choose_precision(model, source, tmp_path, Deploy("int4-weights"), None, False)
    assert chosen.decided == {"precision": "int4-weights"}


def test_without_texts_the_same_tokens_are_drawn_every_time():
    one, other = texts_to_compare(None, 128), texts_to_compare(None, 128)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("level", [0, "4", 2])
def test_a_decided_level_that_there_is_not_is_a_mistake(level):
    told = f"decided.accuracy_level must be 1 or 4, not {level!r}"
    assert told in " ".join(Deploy(decided={"accuracy_level": level}).mistakes())

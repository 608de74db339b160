"""Exported with all structural steps stacked and every layer of another size, a model answers through the stock
ORTModel as it does in torch, and generates the same tokens."""

from __future__ import annotations

import copy

import pytest
import torch

from optimum_slim.deploy.export import export
from optimum_slim.deploy.verify import load_ort
from optimum_slim.errors import ModelError
from optimum_slim.model.shape import BlockShape, shape_of
from optimum_slim.model.surgery import keep_heads, keep_layers, keep_neurons, merge_kv_heads
from optimum_slim.tasks import task_named
from tests.contracts import CLOSE, module_kinds
from tests.tiny import DECODERS, ENCODERS, FAMILIES, GROUPED, answers, mostly_slow, tiny, token_batches

SIZES = ((1, 1), (1, 9), (3, 16), (2, 40))  # (batch, tokens)
SHOWN = ("bert", "llama", "qwen3", "gpt2")


def some(families):
    return mostly_slow(*SHOWN, families=families)


def uneven(family, head=None):
    """Three of four layers, each of another size."""
    model = tiny(family, head, num_hidden_layers=4)
    keep_layers(model, [0, 2, 3])
    keep_neurons(model, 0, range(0, 96))
    keep_neurons(model, 1, range(3, 128, 3))
    if family in GROUPED:
        merge_kv_heads(model, 0, 1)
        keep_heads(model, 1, [1, 2])  # one reader of each key/value head
        keep_heads(model, 2, [2, 3])  # one key/value head with its readers
    else:
        keep_heads(model, 0, [0, 1, 3])
        keep_heads(model, 2, [2])
    return model


def exported(model, folder):
    task = task_named("auto", model.config)
    export(model, task, folder / "model.onnx")
    model.config.save_pretrained(folder)
    return load_ort(folder, task)


@pytest.fixture(params=some(FAMILIES), scope="module")
def pair(request, tmp_path_factory):
    """The torch model and its ORTModel."""
    model = uneven(request.param)
    return model, exported(model, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("padding", ["right", "left"])
def test_uneven_models_answer_alike_at_all_lengths_and_paddings(pair, padding):
    model, ort = pair
    for batch in token_batches(SIZES, padding):
        if model.config.model_type == "gpt2" and padding == "left":
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        mine, theirs = answers(model, batch), answers(ort, batch)
        assert (mine - theirs).abs().max() <= CLOSE * mine.abs().max(), batch["input_ids"].shape


@pytest.mark.parametrize("pair", some(DECODERS), indirect=True)
def test_uneven_models_generate_the_same_tokens(pair):
    model, ort = pair
    for batch in token_batches(((1, 7), (2, 12)), padding="left"):
        wanted, found = (
            one.generate(**batch, max_new_tokens=12, min_new_tokens=12, do_sample=False) for one in (model, ort)
        )
        assert torch.equal(wanted, found)


def test_layers_of_the_exported_model_differ(pair):
    model, _ = pair
    sizes = shape_of(model).blocks
    assert len(set(sizes)) == 3
    if model.config.model_type in GROUPED:
        assert sizes == (BlockShape(4, 1, 96), BlockShape(2, 2, 42), BlockShape(2, 1, 128))


@pytest.mark.parametrize("family", some(ENCODERS))
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "Model"])
def test_encoders_answer_alike_with_every_head(family, head, tmp_path):
    model = uneven(family, head)
    ort = exported(model, tmp_path)
    (batch,) = token_batches(((3, 16),))
    mine, theirs = answers(model, batch), answers(ort, batch)
    assert (mine - theirs).abs().max() <= CLOSE * mine.abs().max()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_export_leaves_model_and_config_as_they_were(family, tmp_path):
    model = uneven(family)
    config, kinds, before = model.config.to_dict(), module_kinds(model), copy.deepcopy(model.state_dict())
    exported(model, tmp_path)
    assert model.config.to_dict() == config
    assert module_kinds(model) == kinds
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_cannot_be_exported_is_a_model_error(tmp_path):
    model = tiny("llama")
    model.model.layers[0].mlp.down_proj = torch.nn.Linear(5, 64)
    with pytest.raises(ModelError, match="cannot be exported to ONNX"):
        export(model, task_named("auto", model.config), tmp_path / "model.onnx")

"""What is saved loads again with the same answers; what is damaged is a ModelError that says so."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from optimum_slim.errors import ModelError
from optimum_slim.model.checkpoint import carry_files, find_model, load_model, load_tokenizer, save_model
from optimum_slim.model.shape import shape_of
from optimum_slim.model.surgery import keep_heads, keep_layers, keep_neurons
from tests.contracts import all_answers, same
from tests.tiny import FAMILIES, save_tiny, tiny, tiny_tokenizer


def slim_bert():
    model = tiny("bert")
    keep_layers(model, [0, 2])
    keep_heads(model, 0, [1, 3])
    keep_neurons(model, 1, range(96))
    return model


@pytest.fixture
def folder(tmp_path):
    save_model(slim_bert(), tmp_path, tiny_tokenizer("bert"))
    return tmp_path


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_transformers_loads_in_float32_and_eval_mode(family, tmp_path):
    save_tiny(tmp_path, family)
    model = load_model(tmp_path)
    assert same(all_answers(tiny(family)), all_answers(model))
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert not model.training


def test_half_precision_files_load_in_float32(tmp_path):
    tiny("bert").half().save_pretrained(tmp_path)
    assert {value.dtype for value in load_model(tmp_path).parameters()} == {torch.float32}


def test_a_slim_model_survives_saving_twice(folder, tmp_path):
    save_model(load_model(folder), tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert same(all_answers(slim_bert()), all_answers(again))
    assert shape_of(again) == shape_of(slim_bert())
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_plain_transformers_loads_a_slim_model_with_and_without_its_head(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert same(all_answers(slim_bert()), all_answers(model.eval()))
    assert shape_of(AutoModel.from_pretrained(folder)) == shape_of(slim_bert())


def test_a_loaded_slim_model_can_be_trained_and_saved(folder, tmp_path):
    model = load_model(folder)
    assert all(value.requires_grad for value in model.parameters())
    model(input_ids=torch.tensor([[5, 9]]), labels=torch.tensor([1])).loss.backward()
    model.save_pretrained(tmp_path / "again")


DAMAGED_CONFIGS = {
    "not json": "{",
    "a list": "[]",
    "a number": "3",
    "no model type": '{"architectures": ["BertModel"]}',
    "an unknown model type": '{"model_type": "swallow", "architectures": ["SwallowModel"]}',
    "a family without anatomy": '{"model_type": "t5", "architectures": ["T5Model"]}',
}


@pytest.mark.parametrize("content", [pytest.param(text, id=name) for name, text in DAMAGED_CONFIGS.items()])
def test_a_config_that_tells_no_model_is_a_model_error(content, folder):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": None},
        {"architectures": []},
        {"architectures": ["BertForSwallows"]},
        {"architectures": ["AutoModel"]},
        {"architectures": "BertModel"},
        {"architectures": 5},
        {"architectures": [5]},
        {"hidden_size": 65},
        {"hidden_size": 32},
        {"hidden_size": "64"},
        {"num_attention_heads": 0},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": None},
        {"intermediate_size": "wide"},
        {"intermediate_size": -1},
        {"vocab_size": 129},
        {"per_layer_config": {"0": {"num_attention_heads": 5}}},
        {"per_layer_config": {"0": {"intermediate_size": 64}}},
        {"per_layer_config": [1, 2]},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_the_weights_is_a_model_error(changes, folder):
    change_config(folder, **changes)
    with pytest.raises(ModelError):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 5},
        {"num_key_value_heads": 0},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 8},
        {"head_dim": 0},
        {"head_dim": "16"},
    ],
    ids=str,
)
def test_grouped_attention_that_does_not_fit_the_weights_is_a_model_error(changes, tmp_path):
    save_tiny(tmp_path, "llama")
    change_config(tmp_path, **changes)
    with pytest.raises(ModelError):
        load_model(tmp_path)


DAMAGED_WEIGHTS = {
    "one missing": lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.weight"),
    "one of another shape": lambda tensors: tensors.update({"bert.pooler.dense.weight": torch.zeros(64, 63)}),
    "one more": lambda tensors: tensors.update({"bert.encoder.layer.2.output.dense.weight": torch.zeros(64, 128)}),
    "none": lambda tensors: tensors.clear(),
}


@pytest.mark.parametrize("change", [pytest.param(one, id=name) for name, one in DAMAGED_WEIGHTS.items()])
def test_weights_that_do_not_fit_the_config_are_a_model_error(change, folder):
    change_weights(folder, change)
    with pytest.raises(ModelError, match=r"the weights in .* (do not fit|cannot be loaded)"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_weights_file_that_was_cut_off_is_a_model_error(kept, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


def test_a_weights_file_of_noise_is_a_model_error(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_lost_file_is_a_model_error(lost, folder):
    (folder / lost).unlink()
    with pytest.raises(ModelError, match=lost):
        load_model(folder)


def test_pickled_weights_are_not_read(tmp_path):
    model = tiny("bert")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere", "a/b/c", "org/no-such-model", "~/no-such-folder"])
def test_a_model_that_is_nowhere_is_a_model_error(source):
    with pytest.raises(ModelError, match=source):
        find_model(source)


def test_a_tokenizer_that_is_not_there_is_a_model_error(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer in .* cannot be loaded"):
        load_tokenizer(folder)


def test_a_tokenizer_without_a_padding_token_pads_with_the_end_token(tmp_path):
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "</s>"  # noqa: S105


def test_files_of_other_libraries_are_carried_and_nothing_is_overwritten(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "1_Pooling").mkdir(parents=True)
    target.mkdir()
    for name in ("1_Pooling/config.json", "modules.json", "generation_config.json", "notes.txt"):
        (source / name).write_text("theirs")
    (target / "generation_config.json").write_text("ours")
    carry_files(source, target)
    found = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert found == {"1_Pooling/config.json": "theirs", "modules.json": "theirs", "generation_config.json": "ours"}

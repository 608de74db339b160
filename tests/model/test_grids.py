"""A model's grids are saved beside it, follow its blocks, and are believed only while its weights stand on them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig

from optimum_slim.errors import ModelError
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.checkpoint import load_model, save_model
from optimum_slim.model.grids import GRIDS_FILE, Grid, grids_in, grids_of, note_grids, put_grids, why_not_keeping
from optimum_slim.model.surgery import keep_layers
from tests.tiny import tiny

QUERY = "bert.encoder.layer.{}.attention.self.query.weight"


def on_grid(model, name, bits=8, group_size=None, axis=0, **more):
    """Rounds a weight to an asymmetric grid of any size, and gives the model this grid."""
    weight = model.get_parameter(name).data.movedim(axis, 0)
    groups = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero_point = (-low / scale).round()
    integers = ((groups / scale[..., None]).round() + zero_point[..., None]).clamp(0, 2**bits - 1)
    weight.copy_(((integers - zero_point[..., None]) * scale[..., None]).view_as(weight))
    put_grids(model, {name: Grid(scale, zero_point.to(torch.uint8), bits, group_size, axis, **more)})
    return integers.view_as(weight).to(torch.uint8)


INPUT = {"input_scale": torch.tensor(0.1), "input_zero_point": torch.tensor(7, dtype=torch.uint8)}


@pytest.mark.parametrize("settings", [{}, {"bits": 4, "group_size": 16}, {"bits": 8, "group_size": 32, **INPUT}])
def test_the_integers_come_back_after_saving_and_loading(settings, tmp_path):
    model, name = tiny("bert"), QUERY.format(1)
    integers = on_grid(model, name, **settings)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert torch.equal(grids_of(again)[name].integers(name, again.get_parameter(name)), integers)
    for part, value in vars(grids_of(model)[name]).items():
        found = getattr(grids_of(again)[name], part)
        assert torch.equal(found, value) if torch.is_tensor(value) else found == value
    assert [grids_in(again.config)[name][key] for key in ("bits", "group_size", "axis")] == [
        settings.get("bits", 8), settings.get("group_size"), 0]  # fmt: skip


def test_the_weights_of_a_conv1d_have_their_outputs_on_axis_1(tmp_path):
    model, name = tiny("gpt2"), "transformer.h.1.mlp.c_fc.weight"
    integers = on_grid(model, name, axis=1)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert integers.shape == (128, 64)
    assert torch.equal(grids_of(again)[name].integers(name, again.get_parameter(name)), integers)


def test_a_copy_of_a_model_has_its_grids_and_a_model_without_has_no_file(tmp_path):
    model = tiny("bert")
    save_model(model, tmp_path)
    assert not (tmp_path / GRIDS_FILE).exists()
    assert grids_of(load_model(tmp_path)) == {}
    on_grid(model, QUERY.format(0))
    assert grids_of(copy.deepcopy(model)).keys() == {QUERY.format(0)}


@pytest.mark.parametrize("step", [1e-3, 1e-7])
def test_a_weight_that_changed_is_an_error_that_says_so(step):
    model, name = tiny("bert"), QUERY.format(0)
    on_grid(model, name)
    weight = model.get_parameter(name)
    weight.data[3, 5] += step
    with pytest.raises(ModelError, match=r"query\.weight is not on the grid .*was changed after it was quantized"):
        grids_of(model)[name].integers(name, weight)


def test_kept_layers_take_their_grids_along():
    model = tiny("bert")
    for layer in range(3):
        on_grid(model, QUERY.format(layer))
    before = grids_of(model)
    keep_layers(model, [0, 2])
    assert grids_in(model.config).keys() == grids_of(model).keys() == {QUERY.format(0), QUERY.format(1)}
    assert grids_of(model)[QUERY.format(1)] is before[QUERY.format(2)]
    for name, grid in grids_of(model).items():
        grid.integers(name, model.get_parameter(name))


@pytest.mark.parametrize(
    "grids",
    [
        ["a.weight"],
        {"a.weight": 8},
        {"a.weight": {"bits": 8}},
        {"a.weight": {"bits": 9, "group_size": None, "axis": 0}},
        {"a.weight": {"bits": 8, "group_size": 0, "axis": 0}},
        {"a.weight": {"bits": 8, "group_size": None, "axis": 2}},
        {"a.weight": {"bits": True, "group_size": None, "axis": 0}},
        {3: {"bits": 8, "group_size": None, "axis": 0}},
    ],
    ids=str,
)
def test_nonsense_in_a_config_is_a_model_error(grids):
    config = BertConfig()
    config.slim = {"grids": grids}
    with pytest.raises(ModelError, match=r"config.json: slim.grids"):
        grids_in(config)


def broken(tensors, name, key, value):
    if value is None:
        del tensors[f"{name}.{key}"]
    else:
        tensors[f"{name}.{key}"] = value


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("scale", None, "scale is missing"),
        ("zero_point", None, "zero_point is missing"),
        ("scale", torch.ones(63, 1), r"scale must be torch.float32 of shape \[64, 1\]"),
        ("scale", torch.ones(64, 1, dtype=torch.float16), "scale must be torch.float32"),
        ("scale", torch.zeros(64, 1), "scale must be finite and not 0"),
        ("scale", torch.full((64, 1), torch.nan), "scale must be finite and not 0"),
        ("input_zero_point", torch.ones(2, dtype=torch.uint8), r"input_zero_point must be torch.uint8 of shape \[\]"),
        ("input_scale", None, "half of the input's grid is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_a_model_error(key, value, told, tmp_path):
    model, name = tiny("bert"), QUERY.format(0)
    on_grid(model, name, **INPUT)
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / GRIDS_FILE)
    broken(tensors, name, key, value)
    save_file(tensors, tmp_path / GRIDS_FILE)
    with pytest.raises(ModelError, match=f"{GRIDS_FILE}: the grid of {name} does not fit: {told}"):
        load_model(tmp_path)


def test_a_file_that_is_not_there_or_damaged_is_a_model_error(tmp_path):
    model = tiny("bert")
    on_grid(model, QUERY.format(0))
    save_model(model, tmp_path)
    for content in (b"no safetensors", None):
        (tmp_path / GRIDS_FILE).write_bytes(content) if content else (tmp_path / GRIDS_FILE).unlink()
        with pytest.raises(ModelError, match=f"{GRIDS_FILE} cannot be read"):
            load_model(tmp_path)


def test_a_config_that_lists_a_weight_of_another_model_is_a_model_error(tmp_path):
    model = tiny("bert")
    on_grid(model, QUERY.format(0))
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["slim"]["grids"]["bert.pooler.query.weight"] = config["slim"]["grids"][QUERY.format(0)]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"bert\.pooler\.query\.weight does not fit: config\.json lists no weight"):
        load_model(tmp_path)


def test_grids_that_plain_transformers_did_not_load_are_missed(tmp_path):
    model = tiny("bert")
    on_grid(model, QUERY.format(0))
    save_model(model, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"disagree about .*query\.weight; load the folder with optimum_slim\.load_model"
    ):
        grids_of(plain)


def test_only_a_config_with_grids_asks_for_steps_that_keep_them():
    config = BertConfig()
    assert not list(why_not_keeping(config))
    note_grids(config, {"a.weight": 0})
    assert "put it before the step that quantizes" in next(why_not_keeping(config))


def test_a_grid_of_another_shape_is_not_believed():
    model, name = tiny("bert"), QUERY.format(0)
    on_grid(model, name)
    grid = grids_of(model)[name]
    with pytest.raises(ModelError, match="is not on the grid"):
        replace(grid, scale=grid.scale[:-1], zero_point=grid.zero_point[:-1]).integers(name, model.get_parameter(name))
    assert len(list(blocks_of(model))) == 3

"""The config tells which weights are sparse, through saving, loading and surgery."""

from __future__ import annotations

import pytest
from transformers import BertConfig

from optimum_slim.errors import ModelError
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.checkpoint import load_config, load_model, save_model
from optimum_slim.model.shape import shape_of, write_shape
from optimum_slim.model.sparsity import note_sparsity, sparse_weights, sparsity_in, why_not_cut
from optimum_slim.model.surgery import keep_layers
from tests.tiny import FAMILIES, tiny

QUERY = "bert.encoder.layer.{}.attention.self.query.weight"


def noted(names, pattern="4x1"):
    config = BertConfig()
    note_sparsity(config, names, pattern)
    return config


def test_a_config_without_sparsity_lists_nothing():
    assert sparsity_in(BertConfig()) == {}
    assert not list(why_not_cut(BertConfig()))


def test_what_is_noted_is_read_again_and_the_last_pattern_holds():
    config = noted(["a.weight", "b.weight"])
    note_sparsity(config, ["b.weight", "c.weight"], "2:4")
    assert sparsity_in(config) == {"a.weight": "4x1", "b.weight": "2:4", "c.weight": "2:4"}
    assert config.slim["version"] == 1
    assert "sparsity must come after" in next(why_not_cut(config))


def test_a_copy_of_a_config_does_not_hear_of_later_notes():
    config = noted(["a.weight"])
    before = sparsity_in(config)
    note_sparsity(config, ["b.weight"], "4x1")
    assert before == {"a.weight": "4x1"}


@pytest.mark.parametrize(
    "slim",
    [
        {"sparsity": ["a.weight"]},
        {"sparsity": "4x1"},
        {"sparsity": {"a.weight": "5x5"}},
        {"sparsity": {"a.weight": "dense"}},
        {"sparsity": {"a.weight": ["4x1"]}},
        {"sparsity": {"a.weight": None}},
        {"sparsity": {3: "4x1"}},
        ["sparsity"],
    ],
    ids=str,
)
def test_nonsense_in_a_config_is_a_model_error(slim):
    config = BertConfig()
    config.slim = slim
    with pytest.raises(ModelError, match=r"config.json: slim.sparsity"):
        sparsity_in(config)


def test_it_survives_saving_loading_and_a_new_shape(tmp_path):
    model = tiny("bert")
    note_sparsity(model.config, [QUERY.format(1)], "4x4")
    write_shape(model.config, shape_of(model))
    save_model(model, tmp_path)
    assert sparsity_in(load_config(tmp_path)) == sparsity_in(load_model(tmp_path).config) == {QUERY.format(1): "4x4"}


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_layers_take_their_sparsity_along(family):
    model = tiny(family)
    patterns = ("4x1", "4x2", "4x4")
    inside = tuple(block.name for block in blocks_of(model))
    weights = [name for name, one in model.named_parameters() if one.ndim == 2 and name.startswith(inside)]
    for layer, pattern in enumerate(patterns):
        note_sparsity(model.config, [name for name in weights if f".{layer}." in name], pattern)
    note_sparsity(model.config, ["outside.weight"], "2:4")
    keep_layers(model, [0, 2])
    listed = sparsity_in(model.config)
    assert listed.pop("outside.weight") == "2:4"
    assert {name for name in listed if listed[name] == "4x1"} == {name for name in weights if ".0." in name}
    assert {name for name in listed if listed[name] == "4x4"} == {name for name in weights if ".1." in name}
    assert all(name in dict(model.named_parameters()) for name in listed)


def test_layers_beyond_the_tenth_are_not_mixed_up():
    model = tiny("bert", num_hidden_layers=12)
    note_sparsity(model.config, [QUERY.format(1)], "4x1")
    note_sparsity(model.config, [QUERY.format(11)], "2:4")
    keep_layers(model, [10, 11])
    assert sparsity_in(model.config) == {QUERY.format(1): "2:4"}


def test_sparse_weights_are_the_parameters_themselves():
    model = tiny("bert")
    note_sparsity(model.config, [QUERY.format(0)], "4x1")
    assert sparse_weights(model)[QUERY.format(0)] is model.bert.encoder.layer[0].attention.self.query.weight


def test_a_listed_weight_that_the_model_lacks_is_a_model_error():
    model = tiny("bert")
    note_sparsity(model.config, [QUERY.format(7)], "4x1")
    with pytest.raises(ModelError, match=r"lists bert\.encoder\.layer\.7"):
        sparse_weights(model)

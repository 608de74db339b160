"""A shape written into a config is the shape read from it, under transformers' own names where it has them."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from optimum_slim.errors import ModelError
from optimum_slim.model.anatomy import anatomy_of
from optimum_slim.model.shape import BlockShape, Shape, shape_in, shape_of, write_shape
from tests.tiny import FAMILIES, GROUPED, tiny, tiny_config

FULL, HALF = BlockShape(4, 4, 128), BlockShape(2, 2, 64)
FULL_GROUPED, HALF_GROUPED = BlockShape(4, 2, 128), BlockShape(2, 2, 64)


def blocks_for(family):
    return (FULL_GROUPED, HALF_GROUPED) if family in GROUPED else (FULL, HALF)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_of_an_untouched_model_tells_its_shape(family):
    model = tiny(family)
    size = 32 if family == "qwen3" else 16
    assert shape_of(model) == shape_in(model.config) == Shape((blocks_for(family)[0],) * 3, size)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", ["FFF", "HHH", "FHF", "HFH", "HHF"])
def test_what_is_written_is_read_again_also_from_a_file(family, pattern, tmp_path):
    config = tiny_config(family)
    full, half = blocks_for(family)
    shape = Shape(tuple(full if letter == "F" else half for letter in pattern), shape_in(config).head_dim)
    write_shape(config, shape)
    assert shape_in(config) == shape
    config.save_pretrained(tmp_path)
    assert shape_in(AutoConfig.from_pretrained(tmp_path)) == shape


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_layers_stand_under_the_familys_own_keys(family):
    config = tiny_config(family)
    full, _ = blocks_for(family)
    write_shape(config, Shape((BlockShape(full.heads, full.kv_heads, 48),) * 3, shape_in(config).head_dim))
    told = config.to_dict()
    assert told[anatomy_of(config).ffn_key] == 48
    assert "per_layer_config" not in told
    assert "quantization_config" not in told


@pytest.mark.parametrize("family", GROUPED)
def test_equal_heads_of_grouped_attention_stand_under_the_familys_own_keys(family):
    config = tiny_config(family)
    size = shape_in(config).head_dim
    write_shape(config, Shape((BlockShape(2, 1, 128),) * 3, size))
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, size)
    assert not hasattr(config, "per_layer_config")


def test_only_what_differs_is_told_per_layer():
    config = tiny_config("llama")
    write_shape(config, Shape((BlockShape(4, 2, 128), BlockShape(2, 2, 128), BlockShape(4, 1, 64)), 16))
    assert config.per_layer_config == {
        "1": {"num_attention_heads": 2},
        "2": {"num_key_value_heads": 1, "intermediate_size": 64},
    }
    assert config.quantization_config["quant_method"] == "optimum_slim"


def test_layers_that_become_equal_again_are_told_as_equal():
    config = tiny_config("bert")
    write_shape(config, Shape((FULL, BlockShape(4, 4, 64)), 16))
    write_shape(config, Shape((BlockShape(4, 4, 64),) * 2, 16))
    assert config.intermediate_size == 64
    assert not hasattr(config, "per_layer_config")
    assert not hasattr(config, "quantization_config")


@pytest.mark.parametrize(
    ("per_layer", "reason"),
    [
        ({"3": {"intermediate_size": 64}}, "per_layer_config.3 does not name one of the 3 layers"),
        ({"-1": {"intermediate_size": 64}}, "per_layer_config.-1 does not name"),
        ({"first": {"intermediate_size": 64}}, "per_layer_config.first does not name"),
        ({"²": {"intermediate_size": 64}}, "per_layer_config.² does not name"),
        ({"1": 64}, "per_layer_config.1"),
        ({"1": None}, "per_layer_config.1"),
        ({"1": {"intermediate_size": 0}}, "per_layer_config.1.intermediate_size: 0 is not a size"),
        ({"1": {"intermediate_size": -64}}, "intermediate_size: -64 is not a size"),
        ({"1": {"intermediate_size": "64"}}, "intermediate_size: '64' is not a size"),
        ({"1": {"intermediate_size": 64.0}}, "intermediate_size: 64.0 is not a size"),
        ({"1": {"num_attention_heads": True}}, "num_attention_heads: True is not a size"),
        ({"1": {"head_count": 4}}, "per_layer_config.1.head_count"),
        ({"1": {"num_attention_heads": 3}}, "per_layer_config.1: kv heads must divide the 3 heads"),
        ([{"intermediate_size": 64}], "per_layer_config"),
        ("intermediate_size", "per_layer_config"),
        (64, "per_layer_config"),
    ],
)
def test_sizes_that_describe_no_layer_are_a_model_error(per_layer, reason):
    config = tiny_config("llama", per_layer_config=per_layer)
    with pytest.raises(ModelError) as raised:
        shape_in(config)
    assert reason in str(raised.value)
    assert str(raised.value).startswith("config.json: ")

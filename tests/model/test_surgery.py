"""What is cut out of a model no longer counts, and nothing else changes."""

from __future__ import annotations

from operator import attrgetter

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from optimum_slim.model.anatomy import anatomy_of, blocks_of
from optimum_slim.model.checkpoint import empty_model
from optimum_slim.model.shape import BlockShape, Shape, shape_in, shape_of
from optimum_slim.model.surgery import keep_heads, keep_layers, keep_neurons, merge_kv_heads, reshape
from tests.contracts import all_answers
from tests.tiny import DECODERS, FAMILIES, GROUPED, tiny

OTHERS = tuple(family for family in FAMILIES if family not in GROUPED)


def close(some, others):
    return all(torch.allclose(one, other, atol=1e-4, rtol=1e-4) for one, other in zip(some, others, strict=True))


def silence(linear, inputs):
    """Makes a linear ignore these inputs."""
    weight = linear.weight.data if isinstance(linear, Conv1D) else linear.weight.data.T
    weight[inputs] = 0


def block(model, index):
    return list(blocks_of(model))[index]


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_dead_neurons_changes_no_logit(family):
    model = tiny(family)
    dead = [0, 17, 127]
    silence(block(model, 1).ffn_out, dead)
    before = all_answers(model)
    keep_neurons(model, 1, [neuron for neuron in range(128) if neuron not in dead])
    assert close(before, all_answers(model))
    assert [sizes.ffn for sizes in shape_of(model).blocks] == [128, 125, 128]


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_dead_heads_changes_no_logit(family):
    model = tiny(family)
    size = shape_of(model).head_dim
    dead = [1, 2]  # in grouped-query attention one reader of each key/value head
    silence(block(model, 1).output, [head * size + at for head in dead for at in range(size)])
    before = all_answers(model)
    keep_heads(model, 1, [0, 3])
    assert close(before, all_answers(model))
    assert [sizes.heads for sizes in shape_of(model).blocks] == [4, 2, 4]


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_a_living_head_or_neuron_changes_logits(family):
    model = tiny(family)
    before = all_answers(model)
    keep_neurons(model, 2, range(127))
    one_neuron_less = all_answers(model)
    assert not close(before, one_neuron_less)
    keep_heads(model, 2, [0, 2])
    assert not close(one_neuron_less, all_answers(model))


@pytest.mark.parametrize("family", GROUPED)
def test_removing_a_dead_key_value_head_with_its_readers_changes_no_logit(family):
    model = tiny(family)
    size = shape_of(model).head_dim
    silence(block(model, 0).output, range(2 * size))
    before = all_answers(model)
    keep_heads(model, 0, [2, 3])
    assert close(before, all_answers(model))
    assert shape_of(model).blocks[0] == BlockShape(heads=2, kv_heads=1, ffn=128)


@pytest.mark.parametrize("family", GROUPED)
def test_merging_equal_key_value_heads_changes_no_logit(family):
    model = tiny(family)
    size = shape_of(model).head_dim
    for linear in block(model, 1).projections[1:]:
        linear.weight.data[size:] = linear.weight.data[:size]
        if linear.bias is not None:
            linear.bias.data[size:] = linear.bias.data[:size]
    before = all_answers(model)
    merge_kv_heads(model, 1, 1)
    assert close(before, all_answers(model))
    assert shape_of(model).blocks[1] == BlockShape(heads=4, kv_heads=1, ffn=128)


def test_merged_key_value_heads_are_the_mean():
    model = tiny("qwen2")
    key = block(model, 0).projections[1]
    weight, bias = key.weight.detach().clone(), key.bias.detach().clone()
    merge_kv_heads(model, 0, 1)
    assert torch.allclose(key.weight, (weight[:16] + weight[16:]) / 2)
    assert torch.allclose(key.bias, (bias[:16] + bias[16:]) / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_layers_are_the_same_layers_and_are_numbered_anew(family):
    model = tiny(family)
    kept = [block(model, index).module for index in (0, 2)]
    keep_layers(model, [0, 2])
    assert [one.module for one in blocks_of(model)] == kept
    assert getattr(model.config, anatomy_of(model).layers_key) == 2
    if path := anatomy_of(model).layer_index:
        assert [attrgetter(path)(one.module) for one in blocks_of(model)] == [0, 1]


@pytest.mark.parametrize("family", DECODERS)  # an encoder's layer norm after each residual always adds something
def test_a_layer_that_adds_nothing_can_go(family):
    model = tiny(family)
    for linear in (block(model, 1).output, block(model, 1).ffn_out):
        torch.nn.init.zeros_(linear.weight)
        if linear.bias is not None:
            torch.nn.init.zeros_(linear.bias)
    before = all_answers(model)
    keep_layers(model, [0, 2])
    assert close(before, all_answers(model))


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_generate_with_a_cache_as_without_after_layers_are_gone(family):
    model = tiny(family)
    keep_layers(model, [1, 2])
    ids, settings = torch.tensor([[5, 9, 30]]), {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))


def test_key_value_heads_must_keep_equally_many_readers():
    with pytest.raises(ValueError, match="block 0: key/value heads would keep different numbers of query heads"):
        keep_heads(tiny("llama"), 0, [0, 1, 2])


def test_key_value_heads_merge_only_evenly():
    model = tiny("llama", hidden_size=96, num_attention_heads=6, num_key_value_heads=3)
    with pytest.raises(ValueError, match="3 key/value heads cannot merge evenly into 2"):
        merge_kv_heads(model, 0, 2)


SHAPES = [
    *((family, Shape((BlockShape(3, 3, 128), BlockShape(4, 4, 5)), 16)) for family in OTHERS),
    *((family, Shape((BlockShape(2, 2, 128), BlockShape(4, 1, 5), BlockShape(1, 1, 7)), 16)) for family in GROUPED[:3]),
    ("qwen3", Shape((BlockShape(2, 1, 64), BlockShape(2, 2, 128), BlockShape(4, 2, 128)), 32)),
]


@pytest.mark.parametrize(("family", "shape"), SHAPES)
def test_a_model_takes_any_smaller_shape_and_its_config_tells_it(family, shape):
    model = tiny(family)
    reshape(model, shape)
    assert shape_of(model) == shape_in(model.config) == shape
    assert all(torch.isfinite(one).all() for one in all_answers(model))
    empty = empty_model(model.config)
    assert {name: value.shape for name, value in empty.named_parameters()} == {
        name: value.shape for name, value in model.named_parameters()
    }
    assert {value.device.type for value in empty.parameters()} == {"meta"}


def test_frozen_weights_stay_frozen_when_cut():
    model = tiny("bert")
    block(model, 0).ffn_out.weight.requires_grad_(False)
    keep_neurons(model, 0, range(64))
    assert not block(model, 0).ffn_out.weight.requires_grad
    assert block(model, 0).ffn_in[0].weight.requires_grad

"""Statistics that are streamed block by block are those of the whole model, as changed so far."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optimum_slim.data.stream import blocks_in_turn, products, squares
from optimum_slim.data.through import Statistic
from optimum_slim.model.anatomy import blocks_of
from tests.contracts import all_answers, same
from tests.data.whole import input_grams
from tests.tiny import FAMILIES, tiny, token_batches


def linear_names(model):
    """The linears of all blocks, found by their kind and not by anatomy."""
    return [
        f"{block.name}.{path}"
        for block in blocks_of(model)
        for path, module in block.module.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]


def streamed(model, names, batches, statistic=products):
    return {name: one for _, found in blocks_in_turn(model, names, batches, statistic) for name, one in found.items()}


def hooks_in(model):
    return [name for name, module in model.named_modules() if module._forward_pre_hooks or module._forward_hooks]


def close_to_grams(found, model, batches):
    """Second moments as the whole model tells them; there a bias is one more input."""
    grams = input_grams(model, list(found), batches)
    return all(torch.allclose(one, grams[name][: len(one), : len(one)], rtol=1e-4, atol=1e-4)
               for name, one in found.items())  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_without_changes_they_are_those_of_the_whole_model(family):
    model, batches = tiny(family), token_batches() + token_batches(padding="left")
    names, before = linear_names(model), all_answers(model)
    found = streamed(model, names, batches)
    assert set(found) == set(names)
    assert close_to_grams(found, model, batches)
    assert same(before, all_answers(model))
    for name, norms in streamed(model, names, batches, squares).items():
        assert torch.allclose(norms, found[name].diagonal(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_block_is_what_later_blocks_hear(family):
    model, batches = tiny(family), token_batches()
    names = linear_names(model)
    dense = streamed(model, names, batches)
    found = {}
    for block, one in blocks_in_turn(model, names, batches, products):
        found |= one
        if block.index == 0:
            for linear in (block.output, block.ffn_out):
                linear.weight.data[::2] = 0
    first, later = names[: len(names) // 3], names[len(names) // 3 :]
    assert all(torch.equal(found[name], dense[name]) for name in first)
    assert not any(torch.allclose(found[name], dense[name], rtol=1e-3) for name in later)
    assert close_to_grams({name: found[name] for name in later}, model, batches)


def test_each_layer_gets_the_mask_that_is_its_own():
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    settings = {"use_sliding_window": True, "sliding_window": 4, "layer_types": kinds}
    model, batches = tiny("qwen2", **settings), token_batches()
    found = streamed(model, linear_names(model), batches)
    assert close_to_grams(found, model, batches)
    plain = streamed(tiny("qwen2"), linear_names(model), batches)
    assert not torch.allclose(found["model.layers.1.self_attn.o_proj"], plain["model.layers.1.self_attn.o_proj"])


def test_only_blocks_with_a_linear_that_is_asked_for_are_told():
    model = tiny("llama")
    name = "model.layers.1.mlp.down_proj"
    (told,) = blocks_in_turn(model, [name], token_batches(), squares)
    assert (told[0].index, list(told[1])) == (1, [name])
    assert not list(blocks_in_turn(model, [], token_batches(), squares))


def test_linears_that_read_the_same_share_their_statistic():
    ((_, found), *_) = blocks_in_turn(tiny("llama"), linear_names(tiny("llama")), token_batches(), products)
    projections = [found[f"model.layers.0.self_attn.{one}_proj"] for one in "qkv"]
    assert projections[0] is projections[1] is projections[2]
    assert found["model.layers.0.self_attn.o_proj"] is not projections[0]


def test_no_hook_is_left_between_blocks_nor_when_it_breaks():
    model = tiny("bert")
    for _ in blocks_in_turn(model, linear_names(model), token_batches(), squares):
        assert not hooks_in(model)

    def broken(rows):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        list(blocks_in_turn(model, linear_names(model), token_batches(), Statistic(broken)))
    assert not hooks_in(model)
    tokens = [{"input_ids": torch.tensor([[5, 999]]), "attention_mask": torch.ones(1, 2)}]
    with pytest.raises(IndexError):
        list(blocks_in_turn(model, linear_names(model), tokens, squares))
    assert not hooks_in(model)

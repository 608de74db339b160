"""Texts that go through a model block by block end where a whole forward pass ends, to the last bit."""

from __future__ import annotations

import copy

import pytest
import torch

from optimum_slim.data import through
from optimum_slim.data.statistics import block_influences, grams_in_turn, losses_without, moments_across
from optimum_slim.data.through import outputs_of, relative_error
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.checkpoint import load_model
from optimum_slim.model.surgery import keep_layers
from optimum_slim.model.turns import block_rows
from tests.data.whole import input_grams
from tests.tiny import FAMILIES, mostly_slow, save_tiny, tiny, token_batches


def last_of(outputs):
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_the_whole_model(family, tmp_path, monkeypatch):
    save_tiny(tmp_path, family)
    whole, streamed = load_model(tmp_path), load_model(tmp_path, streamed=True)
    batches = token_batches() + token_batches(padding="left")
    with torch.no_grad():
        wanted = [last_of(whole(**batch)) for batch in batches]
    for allowed in (through.STATE_BYTES, 1):  # all at once, and one after the other
        monkeypatch.setattr(through, "STATE_BYTES", allowed)
        found = [last_of(outputs) for outputs in outputs_of(streamed, batches)]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
    assert all(parameter.is_meta for parameter in streamed.parameters())
    assert not any("forward" in vars(block.module) for block in blocks_of(streamed))


@pytest.mark.parametrize("family", mostly_slow("llama", "gpt2", "bert"))
def test_second_moments_are_those_of_whole_passes_as_long_as_nothing_changes(family):
    model, batches = tiny(family), token_batches()
    for role in ("ffn_out", "output"):
        names = [block.name_of(role) for block in blocks_of(model)]
        wanted = input_grams(model, names, batches)
        for block, gram in grams_in_turn(model, role, range(3), batches):
            assert torch.equal(gram, wanted[block.name_of(role)])
    assert [row["error"] for row in block_rows(model)] == [0.0] * 6


def test_influences_are_those_of_a_whole_pass():
    model, batches = tiny("llama"), token_batches()
    with torch.no_grad():
        states = [model(**batch, output_hidden_states=True).hidden_states for batch in batches]
    # The last of them has gone through the final norm.
    for at, found in enumerate(block_influences(model, batches)[:-1]):
        pairs = [(one[at][batch["attention_mask"].bool()], one[at + 1][batch["attention_mask"].bool()])
                 for one, batch in zip(states, batches, strict=True)]  # fmt: skip
        cosines = torch.cat([torch.cosine_similarity(before, after, dim=-1) for before, after in pairs])
        assert float(found) == pytest.approx(float((1 - cosines).mean()), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("gone", [(), (1,)], ids=["all", "one gone"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_losses_without_a_block_are_those_of_a_model_that_lacks_it(family, gone, padding, monkeypatch):
    model, batches = tiny(family), token_batches(padding=padding)
    monkeypatch.setattr(through, "STATE_BYTES", 40_000)  # a few texts at a time
    found = losses_without(model, batches, gone)
    for block in range(3):
        less, total, count = copy.deepcopy(model), 0.0, 0
        if block in gone:
            assert found[block] == torch.inf
            continue
        keep_layers(less, [index for index in range(3) if index != block and index not in gone])
        for batch in batches:
            real = batch["attention_mask"].bool()
            told = real[:, :-1] & real[:, 1:]
            with torch.no_grad():
                logits = less(**batch).logits[:, :-1][told]
            total += float(torch.nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:][told], reduction="sum"))
            count += int(told.sum())
        assert float(found[block]) == pytest.approx(total / count, rel=1e-5)


def test_the_error_of_a_block_is_a_share_of_what_it_adds():
    assert relative_error(0.0, 4.0) == 0
    assert relative_error(1.0, 4.0) == 0.5
    assert relative_error(0.0, 0.0) == 0


def test_a_block_that_becomes_silent_has_lost_all():
    model = tiny("llama")
    for block, _ in grams_in_turn(model, "ffn_out", [1], token_batches()):
        for linear in (block.output, block.ffn_out):
            linear.weight.data.zero_()
            if linear.bias is not None:
                linear.bias.data.zero_()
    (row,) = block_rows(model)
    assert (row["block"], row["error"]) == (1, pytest.approx(1.0))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_moments_across_blocks_are_those_of_all_texts_at_once(family):
    model = tiny(family, num_hidden_layers=4)
    batches = token_batches(((3, 9), (2, 14)))
    read, given = {}, {}
    for block in blocks_of(model):
        block.ffn_out.register_forward_pre_hook(
            lambda _, inputs, at=block.index: read.setdefault(at, []).append(inputs[0].flatten(0, -2))
        )
        block.module.register_forward_hook(
            lambda _, __, output, at=block.index: given.setdefault(at, []).append(
                (output[0] if isinstance(output, tuple) else output).flatten(0, -2)
            )
        )
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    real = torch.cat([batch["attention_mask"].flatten().bool() for batch in batches])
    rows, states = ({at: torch.cat(parts)[real] for at, parts in one.items()} for one in (read, given))
    found = moments_across(model, {0: 2, 3: 3}, batches)
    for first, last in ((0, 2), (3, 3)):
        x = rows[first]
        if next(iter(blocks_of(model))).ffn_out.bias is not None:
            x = torch.cat([x, torch.ones(len(x), 1)], 1)
        gram, cross = found[first]
        assert torch.allclose(gram, x.T @ x / len(x), atol=1e-5)
        assert torch.allclose(cross, (states[last] - states[first]).T @ x / len(x), atol=1e-5)

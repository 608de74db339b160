"""On whole models: what is pruned, in which order, what the config tells, and what may come before and after."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optimum_slim.errors import RecipeError
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.matrices import matrix
from optimum_slim.model.sparsity import sparse_weights, sparsity_in
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude
from optimum_slim.techniques.sparsify.masks import block_sums, lowest
from optimum_slim.techniques.sparsify.scores import wanda_scores
from optimum_slim.techniques.sparsify.settings import Sparsify
from optimum_slim.techniques.sparsify.sparsegpt import SparsifySparseGPT, sparsegpt
from optimum_slim.techniques.sparsify.wanda import SparsifyWanda
from tests.data.whole import input_grams
from tests.techniques.sparsify.reference import BLOCKS
from tests.tiny import mostly_slow, tiny, token_batches

TECHNIQUES = (SparsifyMagnitude, SparsifyWanda, SparsifySparseGPT)
EVERYTHING = ("attention", "ffn")


def targeted(model, targets, ignore):
    return Sparsify(targets=tuple(targets), ignore=tuple(ignore)).targeted(model)


def applied(technique, family, batches=None, **changes):
    model = tiny(family, **changes)
    technique.apply(model, **({"calibration_data": batches or token_batches()} if technique.asks() else {}))
    return model


def sparse_matrices(model):
    return {name: matrix(model, name.removesuffix(".weight")) for name in sparsity_in(model.config)}


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("pattern", "family"), zip(BLOCKS, ["gpt2", "bert", "gpt2", "qwen3", "bert"], strict=True))
def test_whole_blocks_of_the_listed_weights_leave_and_nothing_else_changes(technique, pattern, family):
    model, before = applied(technique(pattern=pattern), family), tiny(family)
    assert sparsity_in(model.config) == {f"{name}.weight": pattern for name in targeted(model, EVERYTHING, ())}
    inputs, outputs = BLOCKS[pattern]
    for weight in sparse_matrices(model).values():
        filled = block_sums((weight != 0).float(), pattern)
        assert set(filled.unique().tolist()) == {0.0, float(inputs * outputs)}
        assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    for name, one in before.named_parameters():
        assert (name in sparse_weights(model)) or torch.equal(one, model.get_parameter(name))


@pytest.mark.parametrize("family", mostly_slow("distilbert", "qwen2", "gpt2"))
@pytest.mark.parametrize("technique", [SparsifyWanda(pattern="4x1"), SparsifySparseGPT(ratio=0.6)], ids=["w", "s"])
def test_each_block_is_pruned_with_what_the_pruned_blocks_before_it_send(technique, family):
    model, batches = tiny(family), token_batches()
    for block in blocks_of(model):
        names = targeted(model, [f"{block.name}.*"], ())
        grams = input_grams(model, names, batches)
        for name in names:
            weight = matrix(model, name)
            gram = grams[name][: weight.shape[1], : weight.shape[1]]
            if isinstance(technique, SparsifyWanda):
                scores = wanda_scores(weight, gram.diagonal().sqrt())
                weight[lowest(scores, technique.ratio, technique.pattern, by_row=True)] = 0
            else:
                weight.copy_(sparsegpt(weight, gram, technique.ratio, technique.pattern))
    found = applied(technique, family, batches)
    for name, one in found.named_parameters():
        # Sums of floats in another order move a choice between near-equals now and then.
        far = ~torch.isclose(one, model.get_parameter(name), atol=1e-3, rtol=1e-3)
        assert far.float().mean() < 0.002, name


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("allocation", ["global", "owl"])
@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
def test_shares_that_differ_add_up_to_the_ratio(technique, allocation, pattern):
    model = applied(technique(ratio=0.6, pattern=pattern, allocation=allocation), "llama")
    weights = sparse_matrices(model).values()
    zeros = [int((one == 0).sum()) for one in weights]
    assert sum(zeros) / sum(one.numel() for one in weights) == pytest.approx(0.6, abs=0.006)
    assert len({round(zero / one.numel(), 2) for zero, one in zip(zeros, weights, strict=True)}) > 1


@pytest.mark.parametrize("technique", [SparsifyWanda(), SparsifySparseGPT()], ids=["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", ["roberta", "qwen2"])
def test_padding_of_calibration_texts_has_no_say(technique, family):
    (batch,) = token_batches(((4, 30),))
    rows = range(4)
    texts = [{key: one[i : i + 1, : batch["attention_mask"][i].sum()] for key, one in batch.items()} for i in rows]
    padded, alone = applied(technique, family, [batch]), applied(technique, family, texts)
    for one, other in zip(padded.parameters(), alone.parameters(), strict=True):
        assert (~torch.isclose(one, other, atol=5e-3)).float().mean() < 0.002


CHOICES = [
    (("attention",), (), "llama", {"q_proj", "k_proj", "v_proj", "o_proj"}, {0, 1, 2}),
    (("ffn",), (), "llama", {"gate_proj", "up_proj", "down_proj"}, {0, 1, 2}),
    (("*.down_proj", "*.o_proj"), ("*.layers.1.*",), "llama", {"down_proj", "o_proj"}, {0, 2}),
    (("*",), ("attention", "*.fc1"), "opt", {"fc2"}, {0, 1, 2}),
    (("h.2.*", "*.h.2.mlp.c_proj"), (), "gpt2", {"c_proj"}, {2}),
]


@pytest.mark.parametrize(("targets", "ignore", "family", "linears", "layers"), CHOICES)
def test_targets_and_ignore_choose_by_role_or_name(targets, ignore, family, linears, layers):
    names = targeted(tiny(family), targets, ignore)
    assert {name.rpartition(".")[2] for name in names} == linears
    assert {int(part) for name in names for part in name.split(".") if part.isdigit()} == layers


def test_a_base_model_names_its_weights_without_a_prefix():
    model = applied(SparsifyMagnitude(targets=("ffn",)), "xlm-roberta")
    assert next(iter(sparsity_in(model.config))) == "encoder.layer.0.intermediate.dense.weight"


MISTAKES = [
    ({"ratio": 1.0}, "ratio must be at least 0 and below 1, not 1.0"),
    ({"ratio": -0.1}, "ratio must be at least 0 and below 1, not -0.1"),
    ({"ratio": 0.6, "pattern": "2:4"}, "ratio must be 0.5 with pattern 2:4"),
    ({"pattern": "2:4", "allocation": "owl"}, "allocation must be uniform with pattern 2:4"),
    ({"targets": ()}, "targets must name roles"),
]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("settings", "mistake"), MISTAKES)
def test_settings_that_make_no_sense_are_mistakes(technique, settings, mistake):
    (told,) = technique(**settings).mistakes()
    assert told.startswith(mistake)


FEW = {"prune.ffn": {"ratio": 0.5}}


def test_structure_goes_first_and_layers_any_time(plan):
    steps = plan(FEW, "sparsify.wanda", "sparsify.magnitude", {"prune.layers": {"keep": 2}}).steps
    assert [step.parameters for step in steps[:3]] == [steps[0].parameters] * 3
    assert steps[3].parameters < steps[2].parameters
    assert [step.asks for step in steps] == [("calibration_data",), ("calibration_data",), (), ()]


@pytest.mark.parametrize(
    ("name", "after"), [("sparsify.wanda", FEW), ("sparsify.sparsegpt", {"prune.heads": {"keep": 2}})]
)
def test_cutting_what_is_sparse_is_refused_before_anything_runs(plan, name, after):
    with pytest.raises(RecipeError, match=r"steps.1.prune.\w+: sparsity must come after"):
        plan(name, after)
    assert len(plan({name: {"ratio": 0.0}}, after).steps) == 2


def test_a_target_that_is_not_there_is_refused(plan):
    with pytest.raises(RecipeError) as caught:
        plan({"sparsify.magnitude": {"targets": ["ffn", "*.gate_proj"]}})
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("steps.0.sparsify.magnitude: targets: '*.gate_proj' matches no linear")


def test_planning_notes_the_same_weights_as_apply():
    model, empty = applied(SparsifyWanda(targets=("*.fc1",), pattern="4x2"), "opt"), tiny("opt")
    SparsifyWanda(targets=("*.fc1",), pattern="4x2").note(empty)
    assert empty.config.slim["sparsity"] == model.config.slim["sparsity"]
    assert np.mean([bool((one == 0).any()) for one in sparse_weights(model).values()]) == 1

"""Relations are of the queries, keys and values that attention reads, whatever a family calls its projections."""

from __future__ import annotations

import pytest
import torch

from optimum_slim.model.anatomy import blocks_of
from optimum_slim.techniques.distill.relations import RELATIONS, DistillRelations, record, widths
from optimum_slim.training.losses import relation_loss
from tests.tiny import FAMILIES, GROUPED, mostly_slow, tiny, tiny_config, token_batches


def run(model):
    (batch, *_) = token_batches()
    with torch.no_grad():
        return batch, model(**batch)


@pytest.mark.parametrize("family", mostly_slow("bert", "qwen3", "gpt2"))
def test_recorded_vectors_are_what_the_projections_give(family):
    model = tiny(family)
    block = list(blocks_of(model))[1]
    states, found = {}, {}
    hooks = record(block, found)
    hooks.append(
        block.projections[0].register_forward_pre_hook(lambda _, inputs: states.update(read=inputs[0].clone()))
    )
    run(model)
    for hook in hooks:
        hook.remove()
    given = torch.cat([linear(states["read"]) for linear in block.projections], dim=-1)
    assert tuple(found) == RELATIONS
    assert torch.equal(torch.cat(list(found.values()), dim=-1), given)
    assert {name: vectors.shape[-1] for name, vectors in found.items()} == widths(model.config, 2)


def test_the_loss_adds_up_the_relations_of_the_chosen_layers():
    student, teacher = tiny("bert"), tiny("bert", num_hidden_layers=4, hidden_size=96, num_attention_heads=6)
    technique = DistillRelations(weight=3.0, layer=2, teacher_layer=3, heads=4, relations=("queries", "values"))
    technique.begin(student, teacher)
    ours, theirs = {}, {}
    hooks = record(list(blocks_of(student))[1], ours) + record(list(blocks_of(teacher))[2], theirs)
    batch, _ = run(student)
    run(teacher)
    mask = batch["attention_mask"]
    wanted = sum(relation_loss(ours[name], theirs[name], 4, mask) for name in ("queries", "values"))
    assert technique.loss(None, None, batch).item() == pytest.approx(3.0 * wanted.item(), rel=1e-5)
    technique.end(student)
    for hook in hooks:
        hook.remove()
    for model in (student, teacher):
        assert not any(module._forward_hooks for module in model.modules())
    assert not technique.ours
    assert not technique.theirs


def test_the_last_layers_are_related_without_a_choice():
    student, teacher = tiny("llama"), tiny("llama", num_hidden_layers=5)
    losses = []
    for technique in (DistillRelations(), DistillRelations(layer=3, teacher_layer=5, heads=2)):
        technique.begin(student, teacher)
        batch, _ = run(student)
        run(teacher)
        losses.append(technique.loss(None, None, batch))
        technique.end(student)
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_can_always_learn_from_itself(family):
    config = tiny_config(family)
    assert not list(DistillRelations().refusals(config, config))


MISTAKEN = {
    "weight must be above 0, not 0.0": {"weight": 0.0},
    "layer must be at least 1, not 0": {"layer": 0},
    "teacher_layer must be at least 1, not -1": {"teacher_layer": -1},
    "heads must be at least 1, not 0": {"heads": 0},
    "relations: 'query' is not one; these are: queries, keys, values": {"relations": ("query",)},
    "relations must list at least one of queries, keys, values": {"relations": ()},
}


@pytest.mark.parametrize(("told", "settings"), MISTAKEN.items())
def test_a_mistake_names_its_key(told, settings):
    assert list(DistillRelations(**settings).mistakes()) == [told]


SIX_HEADS = {"hidden_size": 96, "num_attention_heads": 6}
REFUSED = [
    ({"layer": 4}, "bert", {}, "layer: there is no layer 4; the model has layers 1 to 3"),
    ({"layer": 4, "teacher_layer": 9}, "bert", {}, "teacher_layer: there is no layer 9; the teacher has layers 1 to 3"),
    ({"teacher_layer": 5}, "bert", {}, "teacher_layer: there is no layer 5; the teacher has layers 1 to 3"),
    ({}, "bert", SIX_HEADS, "heads: 6 relation heads do not divide queries of 64 values, of the teacher 96; give a di"),
    (
        {"heads": 32, "relations": ("keys",)},
        "llama",
        {"num_key_value_heads": 1},
        "16; give a divisor of 16",
    ),
]


@pytest.mark.parametrize(("settings", "family", "changes", "reason"), REFUSED)
def test_what_cannot_be_related_is_refused_with_the_reason(settings, family, changes, reason):
    refusals = DistillRelations(**settings).refusals(tiny_config(family), tiny_config(family, **changes))
    assert reason in " ".join(refusals)


@pytest.mark.parametrize("family", GROUPED)
def test_keys_and_values_that_heads_share_are_as_wide_as_their_own_heads(family):
    config = tiny_config(family)
    found = widths(config, None)
    assert found["keys"] == found["values"] == found["queries"] // 2

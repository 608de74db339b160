"""A scale of channels moves between modules of every family, and the model answers as before."""

from __future__ import annotations

import pytest
import torch

from optimum_slim.model.channels import links_of
from optimum_slim.model.matrices import matrix
from optimum_slim.techniques.prune.ffn import PruneFFN
from optimum_slim.techniques.prune.heads import PruneHeads
from tests.contracts import all_answers, supplies_for
from tests.tiny import DECODERS, ENCODERS, FAMILIES, tiny

KINDS = {  # what a block of each family has, in order
    "values alone": ("bert", "distilbert", "roberta", "xlm-roberta"),
    "norms and values": ("gpt2",),
    "norms, values and neurons": ("llama", "mistral", "qwen2", "qwen3", "opt"),
}


def drawn(channels):
    return torch.rand(channels, generator=torch.Generator().manual_seed(channels)) * 3 + 0.2


def moved(model):
    """Moves a scale of its own through every link."""
    for link in links_of(model):
        inputs = matrix(model, link.readers[0]).shape[1]
        link.move(model, drawn(len(link.shared(torch.ones(inputs)))))


def check_same(model):
    before, weights = all_answers(model), {name: one.clone() for name, one in model.named_parameters()}
    moved(model)
    for one, other in zip(before, all_answers(model), strict=True):
        assert (one - other).abs().max() <= 2e-5 * one.abs().max()
    links = links_of(model)
    for name in {name for link in links for name in (link.writer, *link.readers)}:
        assert not torch.equal(weights[f"{name}.weight"], model.get_parameter(f"{name}.weight")), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_that_moves_through_every_link_changes_no_answer(family):
    check_same(tiny(family))


@pytest.mark.parametrize("changes", [{"do_layer_norm_before": False}, {"activation_function": "gelu"}])
def test_a_link_that_a_config_closes_is_none(changes):
    model = tiny("opt", **changes)
    assert len(links_of(model)) < len(links_of(tiny("opt")))
    check_same(model)


def test_neurons_of_an_encoder_with_relu_let_a_scale_through():
    model = tiny("bert", hidden_act="relu")
    assert [link.readers[0].rpartition("layer.")[2] for link in links_of(model)][:2] == [
        "0.attention.output.dense",
        "0.output.dense",
    ]
    check_same(model)


def test_links_are_found_where_blocks_differ_in_size(tmp_path):
    model = tiny("llama")
    for technique in (PruneFFN(keep=48), PruneHeads(ratio=0.5)):
        supplies = supplies_for(model, tmp_path)
        technique.apply(model, **{name: supplies[name] for name in technique.asks()})
    check_same(model)


@pytest.mark.parametrize("family", ENCODERS + DECODERS)
def test_every_family_has_the_links_that_its_form_allows(family):
    per_block = len(links_of(tiny(family))) // 3
    kind = next(kind for kind, families in KINDS.items() if family in families)
    assert per_block == {"values alone": 1, "norms and values": 3, "norms, values and neurons": 4}[kind]

"""Every family learns by every way of distillation, and student and teacher are as they were when it ends."""

from __future__ import annotations

import pytest
import torch

from optimum_slim.model.anatomy import blocks_of
from optimum_slim.techniques.distill.attentions import DistillAttentions
from optimum_slim.techniques.distill.hidden_states import DistillHiddenStates
from optimum_slim.techniques.distill.relations import DistillRelations
from optimum_slim.techniques.train import Train
from tests.contracts import all_answers, check_plain, gradients, module_kinds, same, supplies_for
from tests.tiny import mostly_slow, tiny

WAYS = {
    "hidden states": DistillHiddenStates(),
    "relations": DistillRelations(heads=4),
    "attentions": DistillAttentions(),
    "attentions by divergence": DistillAttentions(distance="kl"),
}


def larger(family):
    """A teacher with more of everything."""
    own = {"word_embed_proj_dim": 96} if family == "opt" else {}
    sizes = {"num_hidden_layers": 4, "hidden_size": 96, "num_attention_heads": 6}
    return tiny(family, **sizes, **own).requires_grad_(False)


def settings_of(model):
    """All that the config says, and how attention is computed; but for the dtype, which saving notes down."""
    return model.config.to_dict() | {"dtype": None, "attention": model.config._attn_implementation}


def learn(technique, student, teacher, folder, **settings):
    supplies = supplies_for(student, folder) | {"teacher": teacher}
    settings = {"max_steps": 2, "batch_size": 8, "warmup": 0.0, "weight_decay": 0.0} | settings
    train = Train(with_=(technique,), **settings)
    assert not list(technique.refusals(student.config, teacher.config))
    train.apply(student, **{name: supplies[name] for name in train.asks()})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", mostly_slow("distilbert", "qwen2", "gpt2"))
def test_a_student_learns_from_a_larger_teacher_and_nothing_is_left(way, family, tmp_path):
    student, teacher = tiny(family), larger(family)
    models = (student, teacher)
    kinds, trains = [module_kinds(one) for one in models], [gradients(one) for one in models]
    configs = [settings_of(one) for one in models]
    taught = all_answers(teacher)
    queries = [block.projections[0].weight.clone() for block in blocks_of(student)]
    learn(WAYS[way], student, teacher, tmp_path)
    learned = [not torch.equal(block.projections[0].weight, old) for block, old in zip(blocks_of(student), queries)]
    assert learned[-1]
    assert same(taught, all_answers(teacher))
    for one, kind, trained, config in zip(models, kinds, trains, configs, strict=True):
        check_plain(one, kind, trained)
        assert settings_of(one) == config


@pytest.mark.parametrize("way", WAYS)
def test_mixed_precision_learns_too_and_nothing_is_left(way, tmp_path):
    student, teacher = tiny("roberta"), larger("roberta")
    kinds, trains = module_kinds(student), gradients(student)
    before = all_answers(student)
    learn(WAYS[way], student, teacher, tmp_path, precision="bf16")
    assert not same(before, all_answers(student))
    assert all(torch.isfinite(one).all() for one in all_answers(student))
    check_plain(student, kinds, trains)


@pytest.mark.parametrize("way", WAYS)
def test_a_student_comes_closer_to_its_teacher(way, tmp_path, monkeypatch):
    technique, losses = WAYS[way], []
    loss = type(technique).loss

    def noted(*arguments):
        losses.append(loss(*arguments))
        return losses[-1]

    monkeypatch.setattr(type(technique), "loss", noted)
    learn(technique, tiny("bert"), larger("bert"), tmp_path, max_steps=40, learning_rate=3e-3)
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


class BreaksDown(DistillAttentions):
    def loss(self, student, teacher, batch):
        raise InterruptedError


def test_an_error_on_the_way_leaves_nothing_either(tmp_path):
    student, teacher = tiny("llama"), larger("llama")
    kinds, trains, config = module_kinds(student), gradients(student), student.config._attn_implementation
    with pytest.raises(InterruptedError):
        learn(BreaksDown(), student, teacher, tmp_path)
    student.eval()
    all_answers(student)
    check_plain(student, kinds, trains)
    assert student.config._attn_implementation == teacher.config._attn_implementation == config

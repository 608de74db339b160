"""What holds for all zeros that change while a model trains: seeds, resuming, families, export, planning."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import numpy_helper

from optimum_slim.deploy.export import export
from optimum_slim.deploy.names import module_path
from optimum_slim.deploy.precision import PRECISIONS, prepared
from optimum_slim.errors import RecipeError
from optimum_slim.kernels.packing import unpack
from optimum_slim.model.sparsity import sparse_weights, sparsity_in
from optimum_slim.tasks import task_named
from optimum_slim.techniques.distill.hidden_states import DistillHiddenStates
from optimum_slim.techniques.distill.logits import DistillLogits
from optimum_slim.techniques.sparsify.evolve import SparsifyEvolve
from optimum_slim.techniques.sparsify.gradual import SparsifyGradual
from optimum_slim.techniques.train import Train
from optimum_slim.training import callbacks
from tests.contracts import apply
from tests.stopping import stopped_after
from tests.techniques.sparsify.passes import RATIOS, texts, trained, zero_blocks
from tests.techniques.sparsify.reference import BLOCKS
from tests.tiny import mostly_slow, tiny


@pytest.fixture(scope="module")
def data():
    return texts()


GRADUAL = SparsifyGradual(ratio=0.75, pattern="4x1", every=2)
MOVEMENT = SparsifyGradual(ratio=0.8, score="movement", allocation="global", every=3, end_=0.9)
SET = SparsifyEvolve(start="random", ratio=0.75, pattern="4x4", grow="random", every=2, end_=1.0)
RIGL = SparsifyEvolve(start="random", ratio=0.5, pattern="2:4", every=3, end_=1.0)
ALL = [pytest.param(one, id=name) for name, one in
       {"gradual": GRADUAL, "movement": MOVEMENT, "set": SET, "rigl": RIGL}.items()]  # fmt: skip


@pytest.mark.parametrize("technique", ALL)
def test_the_same_seed_gives_the_same_weights(technique, data, tmp_path):
    one, again, other = (trained(technique, data, tmp_path / str(run), seed=seed) for run, seed in enumerate((3, 3, 4)))
    assert all(torch.equal(weight, again.get_parameter(name)) for name, weight in one.named_parameters())
    assert any(not torch.equal(one == 0, other.get_parameter(name) == 0) for name, one in sparse_weights(one).items())


@pytest.mark.parametrize("technique", ALL)
@pytest.mark.parametrize("stop_after", [2, 7])
def test_stopped_training_goes_on_to_the_same_weights(technique, stop_after, data, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "SAVED_EVERY", 0)
    whole = trained(technique, data, tmp_path / "whole", DistillLogits(), dropout=True)
    with stopped_after(stop_after, monkeypatch):
        trained(technique, data, tmp_path / "stopped", DistillLogits(), dropout=True)
    resumed = trained(technique, data, tmp_path / "stopped", DistillLogits(), dropout=True)
    assert all(torch.equal(one, whole.get_parameter(name)) for name, one in resumed.named_parameters())


@pytest.mark.parametrize("technique", ALL)
@pytest.mark.parametrize("family", mostly_slow("gpt2", "xlm-roberta", "qwen3"))
def test_every_family_trains_with_it(technique, family, tmp_path):
    model = tiny(family)
    losses = (DistillHiddenStates(),) if family == "xlm-roberta" else (DistillLogits(),)
    apply(Train(max_steps=4, batch_size=8, with_=(technique, *losses)), model, tmp_path)
    share = float(torch.cat([(one == 0).flatten() for one in sparse_weights(model).values()]).float().mean())
    assert share == pytest.approx(technique.ratio, abs=0.02)


def served(model, precision, folder, **settings):
    """The integers of each sparse weight in the file that is served, less their zero point, [outputs, inputs]."""
    export(model, task_named("auto", model.config), folder / "model.onnx")
    PRECISIONS[precision](prepared(folder / "model.onnx"), folder / "served.onnx", **settings)
    graph = onnx.load(folder / "served.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = {module_path(node): node for node in graph.node if node.op_type.startswith(("SlimLinear", "MatMulInteger"))}
    for name, pattern in sparsity_in(model.config).items():
        _, first, second, *more = nodes[name.removesuffix(".weight")].input
        if precision == "int8-rows":
            yield name, unpack(stored[first], stored[second], *model.get_parameter(name).shape, pattern)
        else:
            yield name, stored[first].T.astype(int) - stored[more[0]]


@pytest.mark.parametrize("technique", ALL)
@pytest.mark.parametrize("precision", ["int8-rows", "int8-dynamic"])
def test_zeros_survive_export_and_int8(technique, precision, data, tmp_path):
    model = trained(technique, data, tmp_path / "work")
    settings = {"patterns": sparsity_in(model.config)} if precision == "int8-rows" else {}
    for name, integers in served(model, precision, tmp_path, **settings):
        assert not integers[(model.get_parameter(name) == 0).numpy()].any()


@pytest.mark.parametrize("pattern", BLOCKS)
def test_the_file_that_is_served_has_the_ratio_in_blocks(pattern, data, tmp_path):
    technique = SparsifyGradual(ratio=RATIOS[pattern], pattern=pattern, every=2)
    model = trained(technique, data, tmp_path / "work")
    for _, integers in served(model, "int8-rows", tmp_path, patterns=sparsity_in(model.config)):
        zeros = zero_blocks(torch.from_numpy(integers), pattern)
        rounded_away = int(zeros.sum()) - int(zeros.numel() * technique.ratio)
        assert 0 <= rounded_away <= zeros.numel() // 1000


MISTAKES = [
    (SparsifyGradual(ratio=1.0), "ratio must be at least 0 and below 1"),
    (SparsifyGradual(ratio=0.6, pattern="2:4"), "ratio must be 0.5 with pattern 2:4"),
    (SparsifyGradual(ratio=0.5, pattern="2:4", allocation="global"), "allocation must be uniform with pattern 2:4"),
    (SparsifyGradual(targets=()), "targets must name roles"),
    (SparsifyGradual(start_ratio=0.6), "start_ratio must be at least 0 and at most ratio, 0.5, not 0.6"),
    (SparsifyGradual(begin_=1.0, end_=1.1), "begin must be at least 0 and below 1, not 1.0"),
    (SparsifyGradual(begin_=0.5, end_=0.5), "end must be above begin, 0.5, and at most 1, not 0.5"),
    (SparsifyGradual(every=0), "every must be at least 1, not 0"),
    (SparsifyEvolve(start="random"), "ratio must be given with start: random"),
    (SparsifyEvolve(ratio=0.5), "ratio 0.5 has no say with start: given"),
    (SparsifyEvolve(start="random", ratio=0.7, pattern="2:4"), "ratio must be 0.5 with pattern 2:4"),
    (SparsifyEvolve(zeta=1.0), "zeta must be at least 0 and below 1, not 1.0"),
    (SparsifyEvolve(end_=0.0), "end must be above 0 and at most 1, not 0.0"),
    (SparsifyEvolve(every=0), "every must be at least 1, not 0"),
]


@pytest.mark.parametrize(("technique", "mistake"), MISTAKES, ids=lambda one: one if isinstance(one, str) else "")
def test_settings_that_make_no_sense_are_mistakes(technique, mistake):
    assert next(technique.mistakes()).startswith(mistake)


def train(*techniques):
    return {"train": {"with": ["distill.logits", *techniques]}}


def test_planning_knows_of_the_zeros(plan):
    evolve = {"sparsify.evolve": {"pattern": "4x1"}}
    assert len(plan({"sparsify.magnitude": {"pattern": "4x1"}}, train(evolve)).steps) == 2
    assert len(plan(train({"sparsify.gradual": {"pattern": "4x1", "end": 0.7}}), train(evolve)).steps) == 2
    with pytest.raises(RecipeError, match=r"steps.1.prune.ffn: sparsity must come after"):
        plan(train("sparsify.gradual"), {"prune.ffn": {"ratio": 0.5}})


REFUSED = [
    ((train({"sparsify.gradual": {"targets": ["*.gate_proj"]}}),),
     "steps.0.train: with: sparsify.gradual: targets: '*.gate_proj' matches no linear"),
    ((train("sparsify.evolve"),), "start: given moves zeros that are there in pattern unstructured, but bert.encoder"),
    (("sparsify.magnitude", train({"sparsify.evolve": {"pattern": "4x1"}})), "weight is sparse in unstructured; put"),
    ((train({"sparsify.gradual": {"targets": ["ffn"]}}, {"sparsify.gradual": {"targets": ["*.layer.1.*"]}}),),
     "with: two techniques place the zeros of bert.encoder.layer.1.intermediate.dense.weight; give each"),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "reason"), REFUSED)
def test_what_cannot_be_done_to_a_model_is_refused_with_the_reason(steps, reason, plan):
    with pytest.raises(RecipeError) as caught:
        plan(*steps)
    assert reason in " ".join(caught.value.mistakes)


def test_zeros_alone_teach_nothing():
    (mistake,) = Train(with_=(SparsifyGradual(),)).mistakes()
    assert mistake.startswith("there is nothing to learn from")

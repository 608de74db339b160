"""Training with the rounding of int8: what is rounded and when, what is left after the pass, and with what it goes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from optimum_slim.model.checkpoint import load_model, save_model
from optimum_slim.model.grids import grids_in, grids_of
from optimum_slim.model.rounding import affine_scale
from optimum_slim.model.sparsity import sparse_weights
from optimum_slim.model.targets import targeted
from optimum_slim.techniques.distill.hidden_states import DistillHiddenStates
from optimum_slim.techniques.distill.logits import DistillLogits
from optimum_slim.techniques.quantize.aware import QuantizeAware
from optimum_slim.techniques.sparsify.evolve import SparsifyEvolve
from optimum_slim.techniques.sparsify.gradual import SparsifyGradual
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude
from optimum_slim.training import callbacks
from optimum_slim.training.fake_quantize import fake_quantize, fake_quantize_weight, grid_of_range
from optimum_slim.training.trained import Step
from tests.stopping import stopped_after
from tests.techniques.sparsify.passes import texts, trained
from tests.tiny import FAMILIES, answers, mostly_slow, tiny, token_batches

EVERYTHING = ("attention", "ffn")


@pytest.fixture(scope="module")
def data():
    return texts()


def optimizer_step(number, steps):
    return Step(number, steps, steps, None)


def begun(technique, family="bert"):
    model = tiny(family)
    technique.begin(model, None)
    return model


def test_a_pass_ends_with_weights_on_their_grids_and_ranges_of_what_enters(data, tmp_path):
    model = trained(QuantizeAware(), data, tmp_path)
    names = {f"{name}.weight" for name in targeted(model, EVERYTHING)}
    assert grids_of(model).keys() == grids_in(model.config).keys() == names
    for name, grid in grids_of(model).items():
        weight = model.get_parameter(name)
        integers = grid.integers(name, weight).int() - 128
        assert (integers.abs().amax(1) == 127).all()
        assert torch.equal(integers * grid.scale, weight)
        assert grid.input_scale > 0
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    (batch, _) = token_batches()
    assert torch.equal(answers(model, batch), answers(again, batch))
    assert grids_of(again).keys() == names


def test_training_lowers_the_loss_of_the_rounded_model(data, tmp_path):
    def loss(model):
        technique = QuantizeAware(delay=0)
        technique.begin(model, None)
        batch = data.collate(data.examples)
        with torch.no_grad():
            found = float(model(**batch).loss)
        technique.end(model)
        return found

    assert loss(trained(QuantizeAware(), data, tmp_path)) < loss(tiny("bert")) - 0.1


@pytest.mark.parametrize("family", mostly_slow("bert", "llama", "gpt2"))
def test_every_linear_rounds_its_weight_and_what_enters(family):
    model, technique = begun(QuantizeAware(delay=0), family), QuantizeAware()
    names = targeted(model, technique.targets)
    entered = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: entered.update({name: (inputs[0].detach(), output.detach())})
        )
        for name in names
    ]
    (batch, _) = token_batches()
    answers(model, batch)
    for hook in hooks:
        hook.remove()
    assert entered.keys() == set(names)
    for name, (x, output) in entered.items():
        linear = model.get_submodule(name)
        axis = 0 if isinstance(linear, nn.Linear) else 1
        rounded = fake_quantize(x, *affine_scale(x.min().clamp(max=0), x.max().clamp(min=0)))
        weight = fake_quantize_weight(linear.weight, axis)
        assert torch.equal(output, F.linear(rounded, weight.movedim(axis, 0), linear.bias))


def test_activations_are_rounded_after_the_delay_and_watched_before():
    technique = QuantizeAware(delay=0.5, smoothing=0.75)
    model = begun(technique)
    name = "bert.encoder.layer.0.attention.self.query"
    linear, draw, ranges = model.get_submodule(name), torch.Generator().manual_seed(0), None
    for number in range(1, 9):
        # Two batches of one step count as one.
        parts = [torch.randn(2, 5, 64, generator=draw) + 0.1 * number for _ in range(2)]
        for x in parts:
            entered = x if number <= 4 else fake_quantize(x, *grid_of_range(ranges))
            assert torch.equal(linear(x), F.linear(entered, fake_quantize_weight(linear.weight), linear.bias))
        seen = torch.stack([torch.cat(parts).min(), torch.cat(parts).max()])
        ranges = seen if ranges is None else 0.75 * ranges + 0.25 * seen
        technique.before_step(model, optimizer_step(number, 8))
        torch.testing.assert_close(technique.ranges[name], ranges)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_each_forward_is_as_it_was_also_after_an_error(family, precision, data, tmp_path):
    class Failing(QuantizeAware):
        def before_step(self, model, step):
            raise InterruptedError

    model = tiny(family, "ForSequenceClassification")
    linear = next(one for name, one in model.named_modules() if name == targeted(model, EVERYTHING)[0])
    own = type(linear).forward.__get__(linear)
    linear.forward = own
    with pytest.raises(InterruptedError):
        trained(Failing(), data, tmp_path, model=model, precision=precision)
    assert vars(linear)["forward"] is own
    assert [name for name, one in model.named_modules() if "forward" in vars(one)] == [targeted(model, EVERYTHING)[0]]


ZEROS = {
    "zeros of an earlier step": None,
    "more and more zeros": SparsifyGradual(ratio=0.5, pattern="4x1", every=1),
    "zeros by movement": SparsifyGradual(ratio=0.5, pattern="4x1", every=1, score="movement"),
    "moving zeros": SparsifyEvolve(start="random", ratio=0.5, pattern="4x1", every=2),
}


@pytest.mark.parametrize("way", ZEROS)
def test_zeros_stay_zero_on_the_grid_beside_distillation(way, data, tmp_path):
    model, zeros = tiny("bert"), ZEROS[way]
    if zeros is None:
        SparsifyMagnitude(ratio=0.5, pattern="4x1").apply(model)
    with_ = [*([zeros] if zeros else []), DistillLogits(), DistillHiddenStates()]
    trained(QuantizeAware(), data, tmp_path, *with_, model=model)
    assert sparse_weights(model).keys() == grids_of(model).keys()
    total = share = 0
    for name, weight in sparse_weights(model).items():
        integers = grids_of(model)[name].integers(name, weight)
        blocks = (weight == 0).unflatten(1, (-1, 4)).all(2)
        assert torch.equal(integers == 128, weight == 0)
        total, share = total + blocks.numel(), share + int(blocks.sum())
    assert share / total >= 0.49


def test_training_that_was_stopped_goes_on_to_the_same_grids(data, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "SAVED_EVERY", 0)
    whole = trained(QuantizeAware(delay=0.25), data, tmp_path / "whole")
    with stopped_after(5, monkeypatch):
        trained(QuantizeAware(delay=0.25), data, tmp_path / "stopped")
    resumed = trained(QuantizeAware(delay=0.25), data, tmp_path / "stopped")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    for name, grid in grids_of(resumed).items():
        for part in ("scale", "zero_point", "input_scale", "input_zero_point"):
            assert torch.equal(getattr(grid, part), getattr(grids_of(whole)[name], part))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_noted_is_what_a_pass_leaves(family):
    technique, model = QuantizeAware(targets=("ffn",)), tiny(family)
    planned = copy.deepcopy(model)
    technique.note(planned)
    technique.begin(model, None)
    technique.end(model)
    assert grids_in(planned.config) == grids_in(model.config) != {}
    assert all(grid.input_scale is None for grid in grids_of(model).values())


def test_bf16_leaves_the_same_kind_of_grids(data, tmp_path):
    model = trained(QuantizeAware(delay=0), data, tmp_path, precision="bf16")
    for name, grid in grids_of(model).items():
        grid.integers(name, model.get_parameter(name))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"delay": 1.0}, "delay must be at least 0 and below 1"),
        ({"smoothing": 1.0}, "smoothing must be at least 0 and below 1"),
        ({"targets": ()}, "targets must name roles"),
    ],
)
def test_mistakes_in_settings_are_told(settings, told):
    assert told in " ".join(QuantizeAware(**settings).mistakes())

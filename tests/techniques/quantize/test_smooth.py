"""Smoothed models answer as before, and their activations have nothing left that stands out."""

from __future__ import annotations

import pytest
import torch

from optimum_slim.data.stream import blocks_in_turn, largest
from optimum_slim.model.shape import shape_in
from optimum_slim.techniques.quantize.smooth import QuantizeSmooth, smooth_scales
from tests.contracts import all_answers, check_exported, check_plain, check_saved, gradients, module_kinds, supplies_for
from tests.tiny import mostly_slow, tiny, tiny_config, token_batches

LARGE = 60.0


def with_outliers(family):
    """A model in which one channel of a norm and one neuron are many times larger than the others."""
    model = tiny(family)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[5] *= LARGE
        model.model.layers[1].mlp.up_proj.weight[7] *= LARGE
    return model


def smoothed(model, **settings):
    QuantizeSmooth(**settings).apply(model, token_batches())
    return model


def input_absmax(model, names):
    """The largest magnitudes of what linears read."""
    return {
        name: size
        for _, found in blocks_in_turn(model, names, token_batches(), largest, changes=False)
        for name, size in found.items()
    }


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_scales_are_those_of_the_paper(alpha):
    generator = torch.Generator().manual_seed(0)
    inputs, weights = torch.rand(40, generator=generator) * 30, torch.rand(40, generator=generator)
    weights[3] = inputs[4] = 0
    direct = [
        max(max(float(x), 0.0) ** alpha / max(float(w), 1e-5) ** (1 - alpha), 1e-5)
        for x, w in zip(inputs, weights, strict=True)
    ]
    assert smooth_scales(inputs, weights, alpha) == pytest.approx(torch.tensor(direct), rel=1e-5)


@pytest.mark.parametrize("family", mostly_slow("bert", "llama", "gpt2", "opt"))
def test_a_smoothed_model_answers_as_before_and_is_a_plain_one(family, tmp_path):
    model = tiny(family)
    before, kinds, trains, shape = all_answers(model), module_kinds(model), gradients(model), shape_in(model.config)
    calibration = supplies_for(model, tmp_path)["calibration_data"]
    QuantizeSmooth().apply(model, calibration)
    changed = 0.0
    for one, other in zip(before, all_answers(model), strict=True):
        changed = max(changed, float((one - other).abs().max()))
        assert (one - other).abs().max() <= 2e-5 * one.abs().max()
    assert changed > 0
    assert shape_in(model.config) == shape
    check_plain(model, kinds, trains)
    check_saved(model, tmp_path / "saved")
    check_exported(model, tmp_path / "exported")


@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.down_proj"])
def test_what_stood_out_in_activations_no_longer_does(name):
    name = f"model.layers.1.{name}"
    before = input_absmax(with_outliers("llama"), [name])[name]
    after = input_absmax(smoothed(with_outliers("llama")), [name])[name]
    assert before.max() / before.median() > 3 * after.max() / after.median()


def test_with_alpha_one_every_channel_of_the_calibration_texts_reaches_one():
    model = smoothed(tiny("llama"), alpha=1.0)
    names = [f"model.layers.2.{name}" for name in ("self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj")]
    for size in input_absmax(model, names).values():
        assert size == pytest.approx(torch.ones(len(size)), rel=1e-4)


def test_rows_of_int8_come_closer_to_the_floats():
    def error(model):
        name = "model.layers.1.mlp.down_proj"
        rows, linear = [], model.get_submodule(name)
        hook = linear.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].flatten(0, -2)))
        all_answers(model)
        hook.remove()
        x = torch.cat(rows)
        scale = x.abs().amax(1, keepdim=True) / 127
        weight_scale = linear.weight.abs().amax(1, keepdim=True) / 127
        rounded = ((x / scale).round() * scale) @ ((linear.weight / weight_scale).round() * weight_scale).T
        exact = x @ linear.weight.T
        return float((rounded - exact).detach().square().sum() / exact.detach().square().sum())

    assert error(smoothed(with_outliers("llama"))) < 0.5 * error(with_outliers("llama"))


def test_only_the_linears_that_are_meant_are_touched():
    model, before = tiny("llama"), tiny("llama").state_dict()
    smoothed(model, targets=("ffn",), ignore=("*.0.mlp.*",))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = ("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    weights = {f"model.layers.{layer}.{part}.weight" for layer in (1, 2) for part in parts}
    assert changed == weights | {f"model.layers.{layer}.mlp.up_proj.bias" for layer in (1, 2)}


def test_a_channel_that_no_text_uses_stays_as_it_is():
    model = tiny("llama")
    with torch.no_grad():
        for kind in ("weight", "bias"):
            getattr(model.model.layers[0].mlp.up_proj, kind)[9] = 0
    before = model.model.layers[0].mlp.down_proj.weight[:, 9].clone()
    smoothed(model)
    assert torch.equal(before, model.model.layers[0].mlp.down_proj.weight[:, 9])


def test_settings_that_mean_nothing_are_mistakes():
    assert "alpha must be from 0 to 1, not 1.5" in " ".join(QuantizeSmooth(alpha=1.5).mistakes())
    assert "targets must name" in " ".join(QuantizeSmooth(targets=()).mistakes())


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("bert", {"targets": ("ffn",)}, "before none of these linears of a bert stands a norm or linear"),
        ("llama", {"targets": ("*.c_attn",)}, "'*.c_attn' matches no linear"),
    ],
)
def test_a_model_in_which_no_scale_can_move_is_refused(family, settings, reason):
    config = tiny_config(family)
    assert reason in " ".join(QuantizeSmooth(**settings).refusals(config, shape_in(config)))

"""What may stand before and after quantize.aware, and what int8-static needs."""

from __future__ import annotations

import pytest

from optimum_slim.errors import RecipeError
from optimum_slim.model.checkpoint import save_model
from optimum_slim.planning import planned
from optimum_slim.recipe import read_recipe
from tests.model.test_grids import QUERY, on_grid
from tests.tiny import save_rows, save_tiny, tiny, tiny_tokenizer

AWARE = {"train": {"labels": 1.0, "with": ["quantize.aware"]}}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantize")
    data = {"source": str(save_rows(folder / "texts", "text-classification")), "max_length": 16}
    deploy = {"precision": "int8-static", "target": {"tokens": [16]}}
    return {"slim": 1, "model": str(save_tiny(folder / "bert", "bert")), "data": data, "deploy": deploy}


def refused(content, told):
    with pytest.raises(RecipeError) as caught:
        planned(read_recipe(content))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "step", ["sparsify.magnitude", {"prune.ffn": {"ratio": 0.5}}, {"train": {"labels": 1.0}}, AWARE], ids=str
)
def test_no_step_may_change_weights_that_stand_on_a_grid(content, step):
    refused(content | {"steps": [AWARE, step]}, "it would move weights off the grid that quantization put them on")


def test_layers_may_go_after_it_and_anything_before(content):
    steps = [{"prune.ffn": {"ratio": 0.5}}, "sparsify.magnitude", AWARE, {"prune.layers": {"keep": 2}}]
    assert len(planned(read_recipe(content | {"steps": steps})).steps) == 4


def test_a_model_that_comes_on_grids_is_not_changed_either(content, tmp_path):
    model = tiny("bert")
    on_grid(model, QUERY.format(0))
    save_model(model, tmp_path, tiny_tokenizer("bert"))
    refused(content | {"model": str(tmp_path), "steps": [AWARE]}, "steps.0.train: it would move weights off the grid")


def test_two_techniques_cannot_quantize_one_weight(content):
    step = {"train": {"labels": 1.0, "with": ["quantize.aware", {"quantize.aware": {"targets": ["*.query"]}}]}}
    refused(
        content | {"steps": [step]}, "with: two techniques quantize bert.encoder.layer.0.attention.self.query.weight"
    )
    apart = [{"quantize.aware": {"targets": ["attention"]}}, {"quantize.aware": {"targets": ["ffn"]}}]
    planned(read_recipe(content | {"steps": [{"train": {"labels": 1.0, "with": apart}}]}))


def test_targets_that_mean_nothing_are_refused(content):
    step = {"train": {"labels": 1.0, "with": [{"quantize.aware": {"targets": ["*.down_proj"]}}]}}
    refused(content | {"steps": [step]}, "quantize.aware: targets: '*.down_proj' matches no linear")


def test_static_int8_needs_texts_to_calibrate(content, tmp_path):
    refused(content | {"data": {}}, "deploy.precision: int8-static needs texts: give `data:` a source")
    save_rows(tmp_path / "texts", "text-classification")
    (tmp_path / "texts" / "train.jsonl").unlink()
    data = content["data"] | {"source": str(tmp_path / "texts")}
    refused(content | {"data": data}, "deploy.precision: int8-static needs a train split")
    decided = {"precision": "auto", "decided": {"precision": "int8-static"}, "target": {"tokens": [16]}}
    refused(content | {"data": data, "deploy": decided}, "deploy.precision: int8-static needs a train split")


WEIGHTS = {"quantize.weights": {"method": "rtn"}}


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-static", "int8-rows"])
def test_a_precision_that_cannot_keep_groups_is_refused(content, precision):
    told = f"deploy.precision: {precision} cannot store weights of 4 bits in groups of 32"
    deploy = content["deploy"] | {"precision": precision}
    refused(content | {"steps": [WEIGHTS], "deploy": deploy}, told)


@pytest.mark.parametrize("step", ["sparsify.magnitude", AWARE, WEIGHTS], ids=str)
def test_nothing_moves_rounded_weights(content, step):
    deploy = content["deploy"] | {"precision": "int4-weights"}
    told = "it would move weights off the grid that quantization put them on"
    refused(content | {"steps": [WEIGHTS, step], "deploy": deploy}, told)


def test_methods_that_look_at_texts_need_them(content):
    deploy = content["deploy"] | {"precision": "int4-weights", "max_quality_loss": None}
    steps = {"steps": [{"quantize.weights": {"method": "gptq"}}], "deploy": deploy}
    refused(content | steps | {"data": {}}, "steps.0.quantize.weights needs texts: give `data:` a source")
    planned(read_recipe(content | {"steps": [WEIGHTS], "deploy": deploy, "data": {}}))


def test_bytes_are_foretold_for_the_bits_of_the_grids_and_of_the_others(content):
    def foretold(precision, *steps):
        deploy = content["deploy"] | {"precision": precision}
        return planned(read_recipe(content | {"steps": list(steps), "deploy": deploy})).steps[-1].predicted_bytes

    inside = 3 * (4 * 64 * 64 + 2 * 64 * 128)
    eight, four = foretold("int8-weights", WEIGHTS), foretold("int4-weights", WEIGHTS)
    outside = 64 * 64 + 2 * 64  # pooler and classifier
    assert eight - four == outside // 2
    wide = {"quantize.weights": {"method": "rtn", "bits": 8, "group_size": 128}}
    assert foretold("int8-weights", wide) - eight == inside // 2 + inside // 32 - inside // 8

"""A whole run with quantize.weights, also after a kill."""

from __future__ import annotations

import json

import pytest
import yaml

from optimum_slim.deploy.verify import load_ort
from optimum_slim.model.checkpoint import load_model
from optimum_slim.model.grids import grids_of
from optimum_slim.tasks import TextGeneration
from tests.techniques.quantize.whole import check_same_after_kill, whole_run
from tests.tiny import answers, token_batches


@pytest.fixture(scope="module")
def run(tmp_path_factory, few_rounds):
    root = tmp_path_factory.mktemp("weights")
    steps = [{"prune.layers": {"keep": 2}}, {"quantize.weights": {"method": "gptq", "symmetric": False}}]
    return whole_run(root, "qwen2", "text-generation", steps, precision="int8-weights")


def test_the_folder_holds_the_grids_and_the_report_tells_of_blocks(run):
    model = load_model(run / "out")
    assert len(grids_of(model)) == 14
    for name, grid in grids_of(model).items():
        grid.integers(name, model.get_parameter(name))
    report = json.loads((run / "out" / "slim_report.json").read_text())
    assert report["final"]["precision"] == "int8-weights"
    assert {row["stored"] for row in report["final"]["layers"]} == {"4-bit blocks"}
    decided = yaml.safe_load((run / "out" / "slim_recipe.yaml").read_text())["deploy"]["decided"]
    assert decided["accuracy_level"] in (1, 4)
    assert 0 < decided["token_agreement"] <= 1


def test_stock_onnx_runtime_answers_nearly_as_the_torch_model_and_generates(run):
    model, served = load_model(run / "out"), load_ort(run / "out", TextGeneration)
    for batch in token_batches():
        wanted = answers(model, batch)
        assert (answers(served, batch) - wanted).abs().max() < 0.1 * wanted.abs().max()
    (batch,) = token_batches(((2, 8),), padding="left")
    assert served.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (2, 12)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(run, tmp_path):
    check_same_after_kill(run, tmp_path / "out", "step-02")

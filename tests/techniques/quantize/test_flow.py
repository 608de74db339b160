"""A whole run with quantize.aware and int8-static, also after a kill."""

from __future__ import annotations

import json

import pytest

from optimum_slim.deploy.verify import load_ort
from optimum_slim.model.checkpoint import load_model
from optimum_slim.model.grids import grids_of
from optimum_slim.tasks.text_classification import TextClassification
from tests.techniques.quantize.whole import check_same_after_kill, whole_run
from tests.tiny import answers, token_batches

TRAIN = {
    "max_steps": 6,
    "batch_size": 8,
    "with": ["distill.logits", {"sparsify.gradual": {"ratio": 0.5, "pattern": "4x1", "every": 1}}, "quantize.aware"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, few_rounds):
    root, steps = tmp_path_factory.mktemp("aware"), [{"train": TRAIN}, {"prune.layers": {"keep": 2}}]
    deploy = {"precision": "int8-static", "calibration_method": "percentile"}
    return whole_run(root, "bert", "text-classification", steps, **deploy)


def test_the_folder_holds_the_grids_and_the_report_tells_static_int8(run):
    model = load_model(run / "out")
    assert len(grids_of(model)) == 12
    for name, grid in grids_of(model).items():
        grid.integers(name, model.get_parameter(name))
    report = json.loads((run / "out" / "slim_report.json").read_text())
    assert report["final"]["precision"] == "int8-static"
    assert {row["stored"] for row in report["final"]["layers"]} == {"int8 static (4x1 zeros without gain)"}
    assert report["verify"]["deployed_vs_fp32"]["cosine"] > 0.9


def test_stock_onnx_runtime_answers_nearly_as_the_torch_model(run):
    model, served = load_model(run / "out"), load_ort(run / "out", TextClassification)
    for batch in token_batches():
        wanted = answers(model, batch)
        assert (answers(served, batch) - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_killed_run_goes_on_to_the_same_bytes(run, tmp_path):
    check_same_after_kill(run, tmp_path / "out", "step-01")

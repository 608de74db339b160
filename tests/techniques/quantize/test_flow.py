"""A whole run with quantize.aware and int8-static, also after a kill."""

from __future__ import annotations

import json

import pytest
import yaml

from optimum_slim.deploy import benchmark
from optimum_slim.deploy.verify import load_ort
from optimum_slim.flow import slim
from optimum_slim.model.checkpoint import load_model
from optimum_slim.model.grids import GRIDS_FILE, grids_of
from optimum_slim.recipe import load_recipe
from optimum_slim.tasks.text_classification import TextClassification
from tests.test_flow import SAME_BYTES, killed_run
from tests.tiny import answers, save_rows, save_tiny, token_batches

TRAIN = {
    "max_steps": 6,
    "batch_size": 8,
    "with": ["distill.logits", {"sparsify.gradual": {"ratio": 0.5, "pattern": "4x1", "every": 1}}, "quantize.aware"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The recipe, and the folder that an undisturbed run of it wrote."""
    root = tmp_path_factory.mktemp("aware")
    data = {"source": str(save_rows(root / "texts", "text-classification")), "max_length": 16, "calibration": 16}
    content = {"slim": 1, "model": str(save_tiny(root / "model", "bert")), "data": data}
    content["steps"] = [{"train": TRAIN}, {"prune.layers": {"keep": 2}}]
    content["deploy"] = {"precision": "int8-static", "max_quality_loss": None, "target": {"tokens": [16]}}
    content["deploy"]["calibration_method"] = "percentile"
    (root / "recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "ROUNDS", 5)
        slim(load_recipe(str(root / "recipe.yaml")), root / "out")
        yield root


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
    killed_run(run / "recipe.yaml", tmp_path / "out", "step-01")
    slim(load_recipe(str(run / "recipe.yaml")), tmp_path / "out")
    for file in (*SAME_BYTES, GRIDS_FILE):
        assert (tmp_path / "out" / file).read_bytes() == (run / "out" / file).read_bytes(), file

"""A run that has one block at a time in memory hands out what a run with all of the model hands out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from optimum_slim.claims import check_claims
from optimum_slim.commands.run import summary
from optimum_slim.errors import RecipeError
from optimum_slim.flow import slim
from optimum_slim.model import memory
from optimum_slim.model.checkpoint import load_model
from optimum_slim.planning import planned
from optimum_slim.recipe import load_recipe, read_recipe
from tests.tiny import save_rows, save_tiny

pytestmark = pytest.mark.usefixtures("few_rounds")

STEPS = [{"prune.ffn": {"ratio": 0.5}}, {"sparsify.sparsegpt": {"ratio": 0.5}}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A decoder, its texts, and a recipe for both."""
    root = tmp_path_factory.mktemp("streaming")
    save_tiny(root / "model", "llama", num_hidden_layers=4)
    save_rows(root / "texts", "text-generation")
    (root / "recipe.yaml").write_text(yaml.safe_dump(content(root)))
    return root


def content(root, **changes):
    data = {"source": str(root / "texts"), "max_length": 16, "limit": 8, "calibration": 16}
    deploy = {"precision": "int8-weights", "max_quality_loss": None, "target": {"tokens": [16]}}
    known = {"slim": 1, "model": str(root / "model"), "data": data, "steps": STEPS, "deploy": deploy, "threads": 1}
    return known | {"memory": "streamed"} | changes


@pytest.fixture(scope="module")
def outputs(folder):
    """What a streamed run wrote, and a whole one."""
    for kind in ("streamed", "whole"):
        slim(read_recipe(content(folder, memory=kind)), folder / kind)
    return folder / "streamed", folder / "whole"


def test_it_is_the_same_model_in_torch_and_in_onnx(outputs):
    streamed, whole = outputs
    mine, theirs = load_model(streamed).state_dict(), load_model(whole).state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for name in ("config.json", "generation_config.json", "model.onnx"):
        assert (streamed / name).read_bytes() == (whole / name).read_bytes(), name
    assert (streamed / "model.safetensors.index.json").exists()
    assert not list(streamed.glob("step*"))


def test_the_report_tells_what_was_done_to_each_block(outputs):
    reports = [json.loads((output / "slim_report.json").read_text()) for output in outputs]
    for mine, theirs in zip(*(report["steps"] for report in reports), strict=True):
        assert [row["block"] for row in mine["blocks"]] == list(range(4))
        assert all(0 < row["error"] < 2 and row["seconds"] >= 0 for row in mine["blocks"])
        assert [row["error"] for row in mine["blocks"]] == [row["error"] for row in theirs["blocks"]]
        assert (mine["zeros"], mine["parameters"]) == (theirs["zeros"], theirs["parameters"])
        for metric, value in mine["quality_torch"].items():
            assert value == pytest.approx(theirs["quality_torch"][metric], rel=1e-4)


def test_a_killed_run_goes_on_at_its_block_to_the_same_bytes(folder, outputs, tmp_path):
    program = "import sys, optimum_slim; optimum_slim.slim(optimum_slim.load_recipe(sys.argv[1]), sys.argv[2])"
    output = tmp_path / "out"
    record = tmp_path / "out.partial" / "step-02.blocks" / "blocks.json"
    with subprocess.Popen([sys.executable, "-c", program, folder / "recipe.yaml", output]) as process:
        while process.poll() is None and not record.exists():
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
    finished = [row["block"] for row in json.loads(record.read_text())]
    assert 0 < len(finished) < 4
    written = {path: path.stat().st_mtime_ns for path in record.parent.glob("*-weights.safetensors")}
    kept = {path.name: moment for path, moment in written.items()}
    seen = {}

    def say(line):
        if line.startswith("evaluating") or line.startswith("exporting the slim"):
            step = next((tmp_path / "out.partial").glob("step-02"), None)
            if step is not None:
                seen.update({path.name: path.stat().st_mtime_ns for path in step.glob("*.safetensors")})

    slim(load_recipe(str(folder / "recipe.yaml")), output, say=say)
    assert set(kept.values()) <= set(seen.values()), "finished blocks were written again"
    for path in outputs[0].iterdir():
        if path.suffix in (".safetensors", ".onnx", ".yaml") or path.name.endswith("index.json"):
            assert (output / path.name).read_bytes() == path.read_bytes(), path.name


def test_memory_that_is_short_is_a_reason_to_stream(folder, monkeypatch):
    recipe = read_recipe(content(folder, memory="auto"))
    assert not planned(recipe).streamed
    monkeypatch.setattr(memory, "COPIES", 10**9)
    assert planned(recipe).streamed
    assert planned(read_recipe(content(folder, memory="auto", steps=[]))).streamed
    training = content(folder, memory="auto", steps=[{"train": {"max_steps": 1, "labels": 1.0}}])
    assert not planned(read_recipe(training)).streamed


def test_an_original_that_memory_has_no_room_for_is_not_timed(folder, outputs, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "RUN_COPIES", 10**9)
    report = slim(read_recipe(content(folder)), tmp_path / "out")
    whole = json.loads((outputs[0] / "slim_report.json").read_text())
    assert not report.baseline_int8
    assert "latency" not in report.original
    assert "speedup" not in report.final
    assert "without_kernels" not in report.final
    assert report.original["parameters"] == whole["original"]["parameters"]
    assert report.original["file_bytes"] == pytest.approx(whole["original"]["file_bytes"], rel=0.3)
    for name in ("original", "final"):  # judged all the same, but for the odds, which two files would be run for
        for metric, value in getattr(report, name)["quality"].items():
            assert value == pytest.approx(whole[name]["quality"][metric], rel=1e-4)
    assert any("perplexity" in name for name in report.final["quality"])
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (outputs[0] / "model.onnx").read_bytes()
    lines = summary("out", report)
    assert "has no room here" in lines[1]
    assert not any("fp32" in line or "optimum int8" in line for line in lines)
    card, page = ((tmp_path / "out" / name).read_text() for name in ("README.md", "slim_report.html"))
    assert "has no room in this machine's memory" in " ".join(card.split())
    assert "speedup_vs_fp32" not in card
    assert " as fast" not in card + page
    assert all(claim.holds is not False for claim in check_claims(str(tmp_path / "out")))


@pytest.mark.parametrize(("runs", "steps"), [(True, STEPS), (False, [])], ids=["an original that runs", "no room"])
def test_the_disk_is_foretold(folder, monkeypatch, tmp_path, runs, steps):
    if not runs:
        monkeypatch.setattr(memory, "RUN_COPIES", 10**9)
    recipe, held = read_recipe(content(folder, steps=steps)), []

    def look(_):
        files = {path.stat().st_ino: path for path in (tmp_path / "out.partial").rglob("*") if path.is_file()}
        held.append(sum(path.stat().st_size for path in files.values() if path.suffix != ".json"))

    slim(recipe, tmp_path / "out", say=look)
    graphs = 4 * 500_000  # of a tiny model its nodes are most of a file
    assert max(held) - graphs < planned(recipe).disk_bytes < 4 * max(held)


def test_a_budget_needs_room_for_the_original(folder, monkeypatch):
    monkeypatch.setattr(memory, "RUN_COPIES", 10**9)
    with pytest.raises(RecipeError, match="budget: is measured against the original"):
        planned(read_recipe(content(folder, memory="whole", budget={"speedup": 1.5})))


def test_a_streamed_step_is_foretold_to_need_less_memory(folder):
    steps = [planned(read_recipe(content(folder, memory=kind))).steps for kind in ("streamed", "whole")]
    assert all(mine.peak_bytes < theirs.peak_bytes for mine, theirs in zip(*steps, strict=True))


def test_what_cannot_stream_is_refused_by_name(folder):
    wrong = content(folder, device="cuda", steps=[*STEPS, {"train": {"max_steps": 1, "labels": 1.0}}])
    with pytest.raises(RecipeError) as error:
        planned(read_recipe(wrong))
    assert "steps.2.train needs the whole model in memory; use memory: whole" in str(error.value)
    assert "computes on the CPU" in str(error.value)

"""A finished folder goes to the Hub and comes back by its id."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optimum_slim.report.report import Report
from tests.fake_hub import COMMIT, FakeHub, fake_hub

LOAD = """
from optimum.onnxruntime import ORTModelForSequenceClassification
print(ORTModelForSequenceClassification.from_pretrained("tester/slim-bert").config.model_type)
"""


@pytest.fixture
def finished(finished_run) -> Path:
    return finished_run / "out"


def on_the_hub(address: str, home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_pushed_folder_loads_by_its_hub_id(finished, tmp_path):
    with fake_hub() as (address, repositories):
        pushed = on_the_hub(address, tmp_path, "optimum-cli", "slim", "push", str(finished), "tester/slim-bert")
        assert pushed.returncode == 0, pushed.stderr
        assert repositories["tester/slim-bert"]["model.onnx"] == (finished / "model.onnx").read_bytes()
        loaded = on_the_hub(address, tmp_path, sys.executable, "-c", LOAD)
        assert loaded.stdout.strip() == "bert", loaded.stderr
        texts = str(finished.parent / "texts")
        checked = on_the_hub(address, tmp_path, "optimum-cli", "slim", "verify", "tester/slim-bert", "--data", texts)
        assert checked.returncode == 0, checked.stderr
        for line in ("holds       card: model-index", "holds       accuracy", "not checked speedup over fp32"):
            assert line in checked.stdout


def test_a_download_that_breaks_off_is_one_clear_message_and_can_be_repeated(finished, tmp_path):
    out = str(tmp_path / "out")
    command = ["optimum-cli", "slim", "run", "encoder-fast", "--model", "tester/bert", "-o", out]
    options = ["--set", "steps=[]", "--set", "deploy.precision=fp32", "--set", "data.max_length=16"]
    with fake_hub() as (address, repositories):
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            repositories.setdefault("tester/bert", {})[name] = (finished.parent / "model" / name).read_bytes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeHub, "breaks_off", 10_000)
            broken = on_the_hub(address, tmp_path, *command, *options)
        assert broken.returncode == 2
        assert "model: tester/bert is not a folder here, and the Hub did not give it out" in broken.stderr
        assert "Traceback" not in broken.stderr
        assert not list(tmp_path.glob("out*"))
        again = on_the_hub(address, tmp_path, *command, *options)
        assert again.returncode == 0, again.stderr
    report = Report.read(tmp_path / "out")
    assert (report.model["name"], report.model["revision"]) == ("tester/bert", COMMIT)


def test_an_unfinished_folder_is_not_pushed(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "unfinished")
    (folder / "slim_report.json").unlink()
    with fake_hub() as (address, repositories):
        pushed = on_the_hub(address, tmp_path, "optimum-cli", "slim", "push", str(folder), "tester/slim-bert")
    assert pushed.returncode == 2
    assert "slim_report.json" in pushed.stderr
    assert "Traceback" not in pushed.stderr
    assert not repositories


def test_a_hub_that_refuses_is_one_clear_message(finished, tmp_path):
    with fake_hub() as (address, _):
        pass
    pushed = on_the_hub(address, tmp_path, "optimum-cli", "slim", "push", str(finished), "tester/slim-bert")
    assert pushed.returncode == 2
    assert "tester/slim-bert" in pushed.stderr
    assert "Traceback" not in pushed.stderr

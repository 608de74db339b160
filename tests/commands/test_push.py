"""A finished folder goes to the Hub and comes back by its id."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimum_slim.deploy.export import export
from optimum_slim.model.checkpoint import save_model
from optimum_slim.report.report import Report
from optimum_slim.tasks import task_named
from tests.fake_hub import fake_hub
from tests.tiny import tiny, tiny_tokenizer

LOAD = """
from optimum.onnxruntime import ORTModelForSequenceClassification
print(ORTModelForSequenceClassification.from_pretrained("tester/slim-bert").config.model_type)
"""


@pytest.fixture
def finished(tmp_path) -> Path:
    """What `slim run` leaves, as far as push looks at it."""
    model = tiny("bert")
    save_model(model, tmp_path / "out", tiny_tokenizer("bert"))
    export(model, task_named("auto", model.config), tmp_path / "out" / "model.onnx")
    Report().write(tmp_path / "out")
    return tmp_path / "out"


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


def test_an_unfinished_folder_is_not_pushed(finished, tmp_path):
    (finished / "slim_report.json").unlink()
    with fake_hub() as (address, repositories):
        pushed = on_the_hub(address, tmp_path, "optimum-cli", "slim", "push", str(finished), "tester/slim-bert")
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

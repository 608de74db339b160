"""The demo: what its README tells is so, and a run of it that is killed again and again ends in the same bytes."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optimum_slim.data.texts import Data, load_texts
from optimum_slim.model.checkpoint import find_model, load_model, load_tokenizer
from optimum_slim.sources import DEMO
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.text_classification import TextClassification
from tests.test_flow import SAME_BYTES

HOUSE = Path(find_model(DEMO)).parent
CLI = Path(sys.executable).with_name("optimum-cli")


def test_it_is_small():
    assert sum(path.stat().st_size for path in HOUSE.rglob("*") if path.is_file()) <= 28 * 2**20


def test_its_accuracy_is_what_its_readme_tells():
    readme = (HOUSE / "README.md").read_text()
    told = float(re.search(r"([\d.]+) on test", readme)[1])
    model, folder = load_model(DEMO), find_model(DEMO)
    data = Data(source=DEMO)
    task = TextClassification(model.config, load_tokenizer(folder), data, folder)
    texts = load_texts(data, seed=0)
    counts = [len(texts.train), len(texts.validation[""]), len(texts.test[""])]
    assert [int(number) for number in re.findall(r"(\d+) to (?:train|validate|test)", readme)] == counts
    assert Evaluation.of(task, texts.test).quality(model, 32)["accuracy"] == pytest.approx(told, abs=0.003)


def test_a_folder_of_its_name_is_another_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEMO).mkdir()
    (tmp_path / DEMO / "config.json").write_text("{}")
    assert find_model(DEMO) == HOUSE / "model"
    assert find_model(f"./{DEMO}").resolve() == tmp_path / DEMO


def run(output: Path, seconds: float | None = None) -> float | None:
    """Runs the demo, killed after so many seconds; returns how long it took, or None where it was killed."""
    command = [CLI, "slim", "run", "encoder-quick", "--model", DEMO, "--data", DEMO, "-o", output, "--quiet"]
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            assert process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            assert process.wait() == -signal.SIGKILL
            return None
    return time.monotonic() - begun


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(tmp_path):
    whole = run(tmp_path / "whole")
    draw = random.Random()  # noqa: S311
    kills = [draw.uniform(5, 0.8 * whole) for _ in range(3)]
    while run(tmp_path / "killed", kills.pop() if kills else None) is None:
        pass
    assert len(kills) < 3
    for name in SAME_BYTES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

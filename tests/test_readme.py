"""What the README shows works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from optimum_slim.deploy import benchmark
from optimum_slim.model.shape import shape_of
from optimum_slim.techniques import BUILT_IN
from tests.benchmarks.readme_tables import READMES, filled
from tests.tiny import save_rows, save_tiny, tiny

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def code_under(title: str) -> str:
    section = README.split(f"## {title}\n")[1]
    return re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1]


def test_the_technique_of_the_readme_cuts_a_model(monkeypatch):
    mine = ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", mine)  # where dataclasses looks the annotations up
    exec(code_under("Add your own technique"), mine.__dict__)  # noqa: S102
    model = tiny("bert")
    technique = mine.KeepFirst()
    technique.apply(model)
    assert len(shape_of(model).blocks) == technique.layers == 2


def test_every_technique_stands_in_the_readme():
    assert all(f"`{name}`" in README for name in BUILT_IN)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    save_tiny(tmp_path / "my-classifier", "bert", max_position_embeddings=160)
    save_rows(tmp_path / "my-texts", "text-classification")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "ROUNDS", 5)
    exec(code_under("From Python"), {})  # noqa: S102
    assert "vs_fp32" in capsys.readouterr().out
    assert (tmp_path / "my-classifier-int8" / "model.onnx").exists()


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_tables_of_the_readmes_are_what_was_measured(readme):
    assert filled(readme.read_text(encoding="utf-8")) == readme.read_text(encoding="utf-8")

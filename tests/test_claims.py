"""A card's claims are measured again: true ones hold, false ones are found, and damage is no crash."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest

from optimum_slim.claims import check_claims
from optimum_slim.deploy import benchmark
from optimum_slim.errors import SlimError
from optimum_slim.flow import slim
from optimum_slim.recipe import read_recipe
from tests.tiny import save_rows, save_tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, with its model and texts beside it."""
    root = tmp_path_factory.mktemp("claims")
    save_tiny(root / "model", "bert")
    save_rows(root / "texts", "text-classification")
    content = {
        "slim": 1,
        "model": str(root / "model"),
        "data": {"source": str(root / "texts"), "max_length": 16},
        "deploy": {"precision": "int8-dynamic", "max_quality_loss": None, "target": {"tokens": [16]}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "ROUNDS", 5)
        slim(read_recipe(content), root / "out")
    return root


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished / "out", tmp_path / "out")


def false(folder, finished):
    claims = check_claims(str(folder), data=str(finished / "texts"))
    return [claim.what for claim in claims if claim.holds is False]


def test_what_a_run_claims_holds(folder, finished):
    claims = {claim.what: claim for claim in check_claims(str(folder), data=str(finished / "texts"))}
    assert [claim for claim in claims.values() if claim.holds is False] == []
    assert claims["accuracy"].holds
    assert claims["speedup over fp32"].holds is None  # the original was not named


def test_a_card_that_claims_more_is_found(folder, finished):
    card = folder / "README.md"
    row = next(line for line in card.read_text().splitlines() if line.startswith("| ") and "accuracy" in line)
    card.write_text(card.read_text().replace(row, row.replace("0.", "0.9")))
    assert false(folder, finished) == ["card: lines with figures"]


def test_a_report_that_claims_more_is_found(folder, finished):
    path = folder / "slim_report.json"
    report = json.loads(path.read_text())
    report["final"]["quality"]["accuracy"] += 0.1
    report["final"]["file_bytes"] //= 2
    path.write_text(json.dumps(report))
    assert {"accuracy", "bytes of model.onnx"} <= set(false(folder, finished))


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "slim_report.json", "config.json"])
def test_a_damaged_folder_is_an_error_or_a_false_claim(folder, finished, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with contextlib.suppress(SlimError):
        assert false(folder, finished)

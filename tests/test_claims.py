"""A card's claims are measured again: true ones hold, false ones are found, and damage is no crash."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest

from optimum_slim.claims import check_claims
from optimum_slim.errors import SlimError


@pytest.fixture
def folder(finished_run, tmp_path):
    return shutil.copytree(finished_run / "out", tmp_path / "out")


def false(folder, finished_run):
    claims = check_claims(str(folder), data=str(finished_run / "texts"))
    return [claim.what for claim in claims if claim.holds is False]


def test_what_a_run_claims_holds(folder, finished_run):
    claims = {claim.what: claim for claim in check_claims(str(folder), data=str(finished_run / "texts"))}
    assert [claim for claim in claims.values() if claim.holds is False] == []
    assert claims["accuracy"].holds
    assert claims["speedup over fp32"].holds is None  # the original was not named


def test_a_card_that_claims_more_is_found(folder, finished_run):
    card = folder / "README.md"
    row = next(line for line in card.read_text().splitlines() if line.startswith("| ") and "accuracy" in line)
    card.write_text(card.read_text().replace(row, row.replace("0.", "0.9")))
    assert false(folder, finished_run) == ["card: lines with figures"]


def test_a_report_that_claims_more_is_found(folder, finished_run):
    path = folder / "slim_report.json"
    report = json.loads(path.read_text())
    report["final"]["quality"]["accuracy"] += 0.1
    report["final"]["file_bytes"] //= 2
    path.write_text(json.dumps(report))
    assert {"accuracy", "bytes of model.onnx"} <= set(false(folder, finished_run))


def test_a_promise_of_steadiness_that_the_file_breaks_is_found(folder, finished_run):
    path = folder / "slim_report.json"
    report = json.loads(path.read_text())
    report["verify"] |= {"batch": 0.0, "padding": 0.0, "saturating": -1}
    path.write_text(json.dumps(report))
    assert {
        "change of an answer with its batch",
        "change of an answer with its padding",
        "products that can overflow without VNNI",
    } <= set(false(folder, finished_run))


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "slim_report.json", "config.json"])
def test_a_damaged_folder_is_an_error_or_a_false_claim(folder, finished_run, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with contextlib.suppress(SlimError):
        assert false(folder, finished_run)

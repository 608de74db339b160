"""The latency table: what was measured, what lies between, and nothing beyond."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimum_slim.model.latency import LatencyTable, Point

POINT = Point("SlimLinear", 384, 1536, 128, 1, "4x4", 0.8)


@pytest.fixture
def table():
    return LatencyTable({POINT: 2.0, replace(POINT, sparsity=0.9): 1.0, replace(POINT, rows=16): 0.5})


def test_measured_points_and_what_lies_between(table):
    assert table.lookup(POINT) == 2.0
    assert table.lookup(replace(POINT, sparsity=0.85)) == pytest.approx(1.5)
    assert table.lookup(replace(POINT, rows=72)) == pytest.approx(1.25)


@pytest.mark.parametrize(
    "change", [{"sparsity": 0.95}, {"rows": 384}, {"k": 385}, {"pattern": "4x1"}, {"threads": 2}, {"op": "int8"}]
)
def test_nothing_is_known_of_what_was_not_measured(table, change):
    assert table.lookup(replace(POINT, **change)) is None


def test_a_table_is_read_back(table, tmp_path):
    table.save(tmp_path / "deep" / "table.json")
    assert LatencyTable.read(tmp_path / "deep" / "table.json") == table


@pytest.mark.parametrize("content", ["", "{", "[[1]]", '[["SlimLinear"]]', "3"])
def test_a_damaged_table_is_an_empty_one(tmp_path, content):
    (tmp_path / "table.json").write_text(content)
    assert LatencyTable.read(tmp_path / "table.json") == LatencyTable()
    assert LatencyTable.read(tmp_path / "missing.json") == LatencyTable()

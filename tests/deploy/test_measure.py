"""Layers run sparse where that was measured to be faster, and what was measured is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from optimum_slim.deploy import measure
from optimum_slim.deploy.choose import Deploy, choose_patterns
from optimum_slim.deploy.measure import fastest_patterns, measured, table_path
from optimum_slim.model.latency import LatencyTable, Point
from optimum_slim.model.sparsity import note_sparsity
from tests.tiny import tiny

FIRST, SECOND = (f"bert.encoder.layer.{i}.intermediate.dense.weight" for i in range(2))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "HF_HOME", str(tmp_path))


@pytest.fixture
def sparse():
    """A BERT with two sparse weights, 64 to 128, half zeros."""
    model = tiny("bert")
    for layer in model.bert.encoder.layer[:2]:
        layer.intermediate.dense.weight.data[::2] = 0
    note_sparsity(model.config, [FIRST, SECOND], "4x1")
    return model


def test_a_layer_runs_in_its_pattern_where_that_is_faster(sparse):
    pattern = Point("SlimLinear", 64, 128, 32, 1, "4x1", 0.5)
    dense = replace(pattern, pattern="dense", sparsity=0.0)
    LatencyTable({pattern: 1.0, dense: 2.0}).save(table_path())
    assert fastest_patterns(sparse, 32, 1) == {FIRST: "4x1", SECOND: "4x1"}
    LatencyTable({pattern: 2.0, dense: 1.0}).save(table_path())
    assert fastest_patterns(sparse, 32, 1) == {FIRST: "dense", SECOND: "dense"}


@pytest.mark.parametrize("op", ["SlimLinear", "int8", "fp32"])
def test_a_point_is_measured_once_and_kept(op, monkeypatch):
    point = Point(op, 64, 32, 4, 1)
    time = measured([point, point]).milliseconds[point]
    assert 0 < time < 100
    monkeypatch.setattr(measure, "_measure", lambda points: pytest.fail(f"measured again: {points}"))
    assert measured([point]).lookup(point) == pytest.approx(time, abs=1e-6)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1", "4x2", "4x4"])
def test_what_is_measured_has_the_zeros_that_were_asked_for(pattern):
    point = Point("SlimLinear", 64, 96, 4, 1, pattern, 0.5)
    stored = {tensor.name: tensor for tensor in measure.one_linear(point).graph.initializer}
    assert math.prod(stored["values"].dims) == pytest.approx(64 * 96 / 2, rel=0.15)


@pytest.mark.parametrize("pattern", ["dense", "unstructured", "2:4", "4x4"])
def test_random_weights_look_like_those_of_a_quantized_layer(pattern):
    magnitude = np.abs(measure.random_weight(np.random.default_rng(0), 400, 100, pattern, 0.5).astype(int))
    assert (magnitude.max(axis=1) == 127).all()
    assert np.median(magnitude[magnitude > 0]) < 40


def test_settings_and_earlier_decisions_come_first(sparse):
    decided = {"patterns": {FIRST: "4x1"}}
    assert choose_patterns(sparse, Deploy(sparse="never"), False) == {}
    assert choose_patterns(sparse, Deploy(sparse="always"), False) == {FIRST: "4x1", SECOND: "4x1"}
    assert choose_patterns(sparse, Deploy(decided=decided), False) == {FIRST: "4x1", SECOND: "dense"}
    assert choose_patterns(tiny("bert"), Deploy(sparse="always"), False) == {}

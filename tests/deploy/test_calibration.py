"""Ranges from texts: what each method keeps, that padding has no say, and that memory does not grow with the texts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization.calibrate import HistogramCollector

from optimum_slim.deploy.calibration import entropy_threshold, input_ranges, percentile_threshold
from optimum_slim.deploy.export import export
from optimum_slim.deploy.names import module_path
from optimum_slim.deploy.precision import prepared
from optimum_slim.deploy.static import static_linears
from optimum_slim.errors import DataError, ModelError
from optimum_slim.tasks import task_named
from tests.tiny import answers, tiny, token_batches


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama"])
def exported(request, tmp_path_factory):
    """A model all of whose tokens are read, its prepared graph, and the value that enters each linear, by the module's
    name."""
    model = tiny(request.param, "ForTokenClassification" if request.param == "bert" else None)
    folder = tmp_path_factory.mktemp(request.param)
    export(model, task_named("auto", model.config), folder / "model.onnx")
    graph = prepared(folder / "model.onnx")
    return model, graph, {module_path(linear.nodes[0]): linear.x for linear in static_linears(graph)}


@torch.no_grad()
def entered(model, names, texts):
    """All that enters each linear in torch, text by text without padding."""
    found = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: found[name].append(x[0].flatten()))
        for name in names
    ]
    for batch in texts:
        for row, mask in enumerate(batch["attention_mask"].bool()):
            answers(model, {key: value[row][mask][None] for key, value in batch.items()})
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def test_minmax_is_what_torch_sees_without_padding(exported):
    model, graph, values = exported
    before = graph.SerializeToString(deterministic=True)
    ranges = input_ranges(graph, list(values.values()), token_batches(), "minmax")
    for name, seen in entered(model, values, token_batches()).items():
        low, high = ranges[values[name]]
        np.testing.assert_allclose([low, high], [min(seen.min(), 0), max(seen.max(), 0)], rtol=1e-4, atol=1e-4)
    assert graph.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_methods_cut_a_minmax_range_and_nothing_else(exported, method):
    model, graph, values = exported
    names = list(dict.fromkeys(values.values()))
    widest = input_ranges(graph, names, token_batches(), "minmax")
    narrow = input_ranges(graph, names, token_batches(), method)
    assert narrow == input_ranges(graph, names, token_batches(), method)
    seen = entered(model, values, token_batches())
    for name, value in values.items():
        (low, high), (least, most) = narrow[value], widest[value]
        assert least <= low <= 0 <= high <= most
        kept = ((seen[name] >= low * 1.01) & (seen[name] <= high * 1.01)).mean()
        assert kept >= (0.9998 if method == "percentile" else 0.7)


def test_without_texts_or_with_values_that_are_not_finite_there_is_no_range(tmp_path):
    with pytest.raises(DataError, match="int8-static needs texts to calibrate"):
        input_ranges(onnx.ModelProto(), ["x"], [], "minmax")
    model = tiny("bert")
    model.bert.encoder.layer[0].output.LayerNorm.weight.data[3] = torch.inf
    export(model, task_named("auto", model.config), tmp_path / "model.onnx")
    graph = prepared(tmp_path / "model.onnx")
    names = list(dict.fromkeys(one.x for one in static_linears(graph)))
    with pytest.raises(ModelError, match="not finite on the calibration texts"):
        input_ranges(graph, names, token_batches(), "minmax")


BELL = np.random.default_rng(0).standard_normal(1_000_000)


def histogram(values):
    largest = np.abs(values).max()
    return np.histogram(values, 2048, (-largest, largest))[0], largest / 1024


def test_the_percentile_leaves_out_one_value_of_ten_thousand():
    counts, width = histogram(BELL)
    threshold = percentile_threshold(counts) * width
    assert (np.abs(BELL) > threshold).sum() <= 100
    assert (np.abs(BELL) > threshold - width).sum() > 100
    assert percentile_threshold(np.ones(64, int)) == 32


def test_entropy_cuts_far_outliers_and_keeps_a_flat_distribution():
    counts, width = histogram(np.concatenate([BELL, [60.0, -60.0]]))
    assert 3 <= entropy_threshold(counts) * width <= 8
    flat, width = histogram(np.random.default_rng(0).uniform(-1, 1, 100_000))
    assert entropy_threshold(flat) * width > 0.95


@pytest.mark.parametrize("outlier", [12.0, 25.0])
def test_entropy_is_near_the_threshold_of_onnx_runtimes_calibrator(outlier):
    counts, width = histogram(np.concatenate([BELL, [outlier, -outlier]]))
    edges = (np.arange(2049) - 1024).astype(np.float32) * np.float32(width)
    collector = HistogramCollector("entropy", False, 2048, 128, 99.99, "same")
    ends = np.float32([-outlier, outlier])
    theirs = collector.get_entropy_threshold((counts, edges, ends[0], ends[1], ends[1]), 128)
    assert entropy_threshold(counts) * width == pytest.approx(float(theirs[1]), rel=0.15)


SCRIPT = """
import resource, sys
import onnx, torch
from optimum_slim.deploy.calibration import input_ranges
from optimum_slim.deploy.static import static_linears

graph, method = onnx.load(sys.argv[1]), sys.argv[2]
names = list(dict.fromkeys(one.x for one in static_linears(graph)))
ids = torch.randint(5, 128, (8, 128), generator=torch.Generator().manual_seed(0))
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
peaks = []
for count in (1, 1, 24):
    input_ranges(graph, names, [batch] * count, method)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[2] - peaks[1])
"""


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_memory_does_not_grow_with_the_number_of_texts(method, tmp_path):
    model = tiny("bert", hidden_size=256, intermediate_size=2048)
    export(model, task_named("auto", model.config), tmp_path / "model.onnx")
    linears = static_linears(onnx.load(tmp_path / "model.onnx"))
    (tmp_path / "script.py").write_text(SCRIPT)
    places = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, tmp_path / "script.py", tmp_path / "model.onnx", method]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | places)
    kept = 16 * 8 * 128 * 4 * 3 * (2 * 256 + 2048) / 1024  # KiB of all that enters, were it held
    assert len(linears) > 15
    assert int(done.stdout.splitlines()[-1]) < kept / 20

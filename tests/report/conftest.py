"""A small report: the files are a real export of a tiny model, the times and qualities are made up."""

import copy

import pytest

from optimum_slim.deploy.export import export, onnx_bytes
from optimum_slim.deploy.machine import environment
from optimum_slim.deploy.parts import file_parts, layer_rows
from optimum_slim.deploy.precision import int8_dynamic, prepared
from optimum_slim.report.report import Report, parameters_of
from optimum_slim.tasks import task_named
from tests.tiny import tiny

BUDGET = {
    "quality_drop": {"wanted": 0.03, "reached": 0.0212},
    "speedup": {"wanted": 3.25, "reached": {"median": 3.271, "low": 3.012, "high": 3.518}},
    "high": {"bert.encoder.layer.2.output.dense.weight": 0.437, "classifier.weight": 0.119},
    "denser": {"bert.encoder.layer.0.output.dense.weight": 0.23},
}
SPEED = {"vs_fp32": {"median": 3.271, "low": 3.012, "high": 3.518},
         "vs_optimum_int8": {"median": 1.434, "low": 1.287, "high": 1.569}}  # fmt: skip
RECIPE = {
    "slim": 1,
    "model": "texts-by-author",
    "data": {"source": "letters", "evaluation": "test", "max_length": 64, "limit": 321},
    "steps": [],
    "deploy": {"logits": "last"},
}


def latency(*p50):
    return [
        {"phase": "forward", "batch": batch, "tokens": 64, "threads": 1}
        | {"p50": time, "p90": time * 1.25, "p99": time * 1.5}
        for batch, time in zip((1, 8), p50)
    ]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a tiny model: fp32 under `before/`, int8 beside its config."""
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny("bert")
    export(model, task_named("auto", model.config), folder / "before" / "model.onnx")
    model.config.save_pretrained(folder)
    int8_dynamic(prepared(folder / "before" / "model.onnx"), folder / "model.onnx")
    return folder


@pytest.fixture(scope="session")
def _report(tiny_folder):
    path, parameters = tiny_folder / "model.onnx", parameters_of(tiny("bert"))
    sizes = {"parameters": parameters, "zeros": 0, "rss_bytes": 123_400_000}
    before = sizes | {"file_bytes": onnx_bytes(tiny_folder / "before" / "model.onnx"), "quality": {"accuracy": 0.8875}}
    final = sizes | {"file_bytes": onnx_bytes(path), "quality": {"accuracy": 0.8625}, "precision": "int8-dynamic"}
    final |= {"latency": latency(2.124, 9.871), "parts": file_parts(path), "layers": layer_rows(path)}
    for row in final["latency"]:
        row["speedup"] = SPEED
    int8 = before | {"file_bytes": 188_345, "quality": {"accuracy": 0.8775}, "latency": latency(3.045, 14.15)}
    step = {"settings": {"ratio": 0.27, "keep": None}, "parameters": parameters, "zeros": 0, "seconds": 12.7}
    step |= {"predicted_bytes": 141_591, "peak_rss_bytes": 876_500_000, "quality_torch": {"accuracy": 0.8653}}
    return Report(
        model={"name": "texts-by-author", "revision": None, "sha256": "c0ffee" * 10 + "abcd", "license": None},
        data={"name": "letters", "local": True, "sha256": "beef" * 16},
        task="text-classification",
        recipe=RECIPE,
        steps=[{"technique": "prune.ffn", **step}],
        original=before | {"latency": latency(6.947, 31.28)},
        baseline_int8=int8,
        final=final | {"speedup": SPEED},
        verify={"fp32_vs_torch": {"largest": 4.1e-07, "cosine": 1.0}, "weights_found": 23,
                "deployed_vs_fp32": {"largest": 0.0371, "cosine": 0.99851},
                "batch": 0.00417, "padding": 3.1e-07, "threads": 0.0, "products": 20, "saturating": 0},
        environment=environment(),
    )  # fmt: skip


@pytest.fixture
def report(_report):
    """A report that the test may change."""
    return copy.deepcopy(_report)

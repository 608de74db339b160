"""One library and one file serve every ONNX Runtime since 1.17, to the same bit."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnx
import pytest

from optimum_slim.kernels.function import DOMAIN
from tests.kernels import elsewhere
from tests.kernels.floats import attention_inputs, attention_model, norm_inputs, norm_model
from tests.kernels.layers import joined_model, random_layer, random_rows, slim_model

OLD = ["onnxruntime==1.17.3", "numpy<2"]  # was built before numpy 2
VERSIONS = [OLD, ["onnxruntime==1.20.1"], ["onnxruntime==1.23.2"], ["onnxruntime"]]

# A model, its inputs, and how far the function may be from the kernel. Functions that compute with floats do so by ONNX
# Runtime's own products, which change from one version to the next.
X = {"x": random_rows(17, 72)}
MODELS = {
    **{pattern: (slim_model(random_layer(50, 72, pattern)), X, 0) for pattern in ("dense", "4x1", "unstructured")},
    "grouped": (slim_model(random_layer(50, 72, "4x1", group_size=8), "Gelu"), X, 1e-5),
    "joined": (
        joined_model([slim_model(random_layer(n, 72, "4x1"), functions=False) for n in (48, 16, 32)]),
        X,
        0,
    ),
    "gated": (joined_model([slim_model(random_layer(32, 72, "dense"), functions=False)] * 2, "Silu"), X, 1e-5),
    "attention": (attention_model(3), attention_inputs(2, 33, 33, 60, (2, 1, 33)), 1e-5),
    "norm": (norm_model(), norm_inputs(2, 3, 100), 1e-5),
}


@pytest.fixture
def folder(tmp_path):
    for name, (model, inputs, _) in MODELS.items():
        onnx.save(model, str(tmp_path / f"{name}.onnx"))
        np.savez(tmp_path / f"{name}.npz", **inputs)
    return tmp_path


def answers_of(requirements: list[str], folder: Path, library: Path) -> dict[str, np.ndarray]:
    """Those of another version, in a virtual environment that holds nothing else."""
    venv.create(folder / "venv", symlinks=True)
    python = str(folder / "venv" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--retries", "1", *requirements]
    installed = subprocess.run(pip, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"pip has no {' '.join(requirements)} for this machine: {installed.stderr.strip()[-300:]}")
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = [python, "-P", elsewhere.__file__, str(folder), str(library)]
    done = subprocess.run(script, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert requirements[0] in ("onnxruntime", f"onnxruntime=={done.stdout.strip()}")
    return dict(np.load(folder / "answers.npz"))


def domains_run(folder: Path, name: str, way: str) -> set[str]:
    return {node.domain for node in onnx.load(str(folder / f"{name}.{way}.run")).graph.node}


@pytest.mark.slow
@pytest.mark.parametrize("requirements", VERSIONS, ids=lambda one: one[0])
def test_another_onnx_runtime_answers_with_the_same_bits(requirements, folder, library):
    there = answers_of(requirements, folder, library)
    for name in MODELS:
        assert domains_run(folder, name, "kernel") == {DOMAIN}
        assert DOMAIN not in domains_run(folder, name, "function")
    here = elsewhere.answers(folder, str(library))
    assert there.keys() == here.keys() == {f"{name} {way}" for name in MODELS for way in elsewhere.WAYS}
    for name, (_, _, allowed) in MODELS.items():
        kernel = here[f"{name} kernel"]
        np.testing.assert_array_equal(there[f"{name} kernel"], kernel, err_msg=name)
        np.testing.assert_allclose(there[f"{name} function"], kernel, rtol=allowed, atol=allowed, err_msg=name)

"""A few layers of every pattern, run by the library and by numpy: is this machine's instruction set right?"""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx.onnx_pb import ModelProto

from optimum_slim.kernels.blocked import packed
from optimum_slim.kernels.library import register
from optimum_slim.kernels.model import blocked_model, layer_model
from optimum_slim.kernels.pattern import PATTERNS

OUTPUTS, INPUTS, BLOCK = 37, 150, 64
ROWS = (1, 5, 40, 70)


def outputs_are_right() -> bool:
    """Compares bit by bit, under the instruction set that OPTIMUM_SLIM_ISA names."""
    rng = np.random.default_rng(0)
    for pattern in PATTERNS:
        weight = rng.integers(-127, 128, (OUTPUTS, INPUTS)).astype(np.int8)
        if pattern == "2:4":
            weight[:, 1::2] = 0
        elif pattern != "dense":
            weight[:, : INPUTS // 3 * 2] = 0
        scale, bias = rng.random((OUTPUTS, 1), np.float32), rng.standard_normal(OUTPUTS, np.float32)
        session = _session(layer_model(weight, scale, bias, pattern, functions=False))
        for rows in ROWS:
            x = rng.standard_normal((rows, INPUTS), np.float32)
            if not np.array_equal(session.run(None, {"x": x})[0], _reference(x, weight, scale, bias)):
                return False
    return _blocked_outputs_are_right(rng)


def _blocked_outputs_are_right(rng: np.random.Generator) -> bool:
    """Of weights of 4 bits, one block of inputs, so that the sums are those of `_reference`."""
    integers, scale = rng.integers(0, 16, (OUTPUTS, BLOCK), np.uint8), rng.random((OUTPUTS, 1), np.float32)
    session = _session(blocked_model(packed(integers, 4)[:, None], scale, functions=False))
    weight, bias = (integers - np.uint8(8)).view(np.int8), np.zeros(OUTPUTS, np.float32)
    rows = (rng.standard_normal((count, BLOCK), np.float32) for count in ROWS)
    return all(np.array_equal(session.run(None, {"x": x})[0], _reference(x, weight, scale, bias)) for x in rows)


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _reference(
    x: NDArray[np.float32], weight: NDArray[np.int8], scale: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    full = np.float32(127)
    largest = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-30))
    sums = np.round(x * (full / largest)).astype(np.int64) @ weight.T.astype(np.int64)
    y: NDArray[np.float32] = (sums.astype(np.float32) * (largest / full)) * scale[:, 0] + bias
    return y

"""Runs an ONNX classifier in another engine, once for each line that comes in: the other side of `encoders.py`, which
starts it with the Python of that engine's own environment.

python -m venv ov && ov/bin/pip install openvino nncf             PYTHON peer.py openvino FILE TOKENS THREADS
python -m venv ds && ds/bin/pip install deepsparse==1.8.0         PYTHON peer.py deepsparse FILE TOKENS THREADS

OpenVINO quantizes the fp32 file itself (NNCF, calibrated on random tokens: only the speed counts here). DeepSparse gets
a file that is quantized already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def openvino(path: str, tokens: int, threads: int) -> Callable[[], Any]:
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    model.reshape({name: [1, tokens] for name in NAMES})
    texts = nncf.Dataset([random_text(tokens, seed) for seed in range(16)])
    model = nncf.quantize(model, texts, model_type=nncf.ModelType.TRANSFORMER, subset_size=16)
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    text = random_text(tokens, 0)
    return lambda: request.infer(text)


def deepsparse(path: str, tokens: int, threads: int) -> Callable[[], Any]:
    from deepsparse import Engine

    engine = Engine(model=path, batch_size=1, num_cores=threads)
    text = list(random_text(tokens, 0).values())
    return lambda: engine.run(text, val_inp=False)


def random_text(tokens: int, seed: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(1000, 5000, (1, tokens))
    return dict(zip(NAMES, (ids, np.ones_like(ids), np.zeros_like(ids))))


if __name__ == "__main__":
    run = {"openvino": openvino, "deepsparse": deepsparse}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    run()
    # What the engines print goes elsewhere than the answers.
    print("ready", file=sys.stderr, flush=True)
    for _ in sys.stdin:
        run()
        print("done", file=sys.stderr, flush=True)

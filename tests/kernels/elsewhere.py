"""Answers of a folder's models by ONNX Runtime alone: for other versions of it, where nothing of ours is installed.

python elsewhere.py FOLDER LIBRARY      writes FOLDER/answers.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

WAYS = ("kernel", "function")


def answers(folder: Path, library: str) -> dict[str, np.ndarray]:
    """To X.onnx and its inputs X.npz the answers "X kernel" and "X function". What each session ran is left beside them
    as X.kernel.run and X.function.run."""
    found = {}
    for path in sorted(folder.glob("*.onnx")):
        inputs = dict(np.load(path.with_suffix(".npz")))
        for way in WAYS:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 4
            options.optimized_model_filepath = str(path.with_suffix(f".{way}.run"))
            if way == "kernel":
                options.register_custom_ops_library(library)
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            found[f"{path.stem} {way}"] = session.run(None, inputs)[0]
    return found


if __name__ == "__main__":
    np.savez(Path(sys.argv[1]) / "answers.npz", **answers(Path(sys.argv[1]), sys.argv[2]))
    print(onnxruntime.__version__)

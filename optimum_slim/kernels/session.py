"""Options of an ONNX Runtime session that runs SlimLinear by our kernels."""

from __future__ import annotations

import onnxruntime

from optimum_slim.kernels.library import register


def session_options(threads: int | None = None) -> onnxruntime.SessionOptions:
    """Options to load a slim folder with: `ORTModelForX.from_pretrained(folder, session_options=session_options())`.

    Args:
        threads: of one inference; default: ONNX Runtime's choice, the number of physical cores.
    """
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    register(options)
    return options

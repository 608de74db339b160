"""Options of an ONNX Runtime session that runs SlimLinear by our kernels, and a decoder as one likes to read it."""

from __future__ import annotations

import numpy as np
import onnxruntime

from optimum_slim.kernels.library import register

LOGITS_FROM = "logits_from"  # a decoder's initializer, int64 [1]: the first token with logits; -1 is the last, 0 all
_ALL = onnxruntime.OrtValue.ortvalue_from_numpy(np.array([0]))  # options refer to it and copy nothing


def session_options(threads: int | None = None, all_logits: bool = False) -> onnxruntime.SessionOptions:
    """Options to load a slim folder with: `ORTModelForX.from_pretrained(folder, session_options=session_options())`.

    Args:
        threads: of one inference; default: ONNX Runtime's choice, the number of physical cores.
        all_logits: as `read_all_logits`.
    """
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    register(options)
    return read_all_logits(options) if all_logits else options


def read_all_logits(options: onnxruntime.SessionOptions) -> onnxruntime.SessionOptions:
    """Lets a decoder give the logits of all tokens, where its file is made for generation, which reads the last token's
    alone (`deploy.logits`); other files do not mind. Returns the options."""
    options.add_initializer(LOGITS_FROM, _ALL)
    return options

"""Runs a model in another engine, once for each line that comes in: the other side of `encoders.py` and `decoders.py`,
which start it with the Python of that engine's own environment.

python -m venv ov && ov/bin/pip install openvino nncf             PYTHON peer.py openvino FILE TOKENS THREADS
python -m venv ds && ds/bin/pip install deepsparse==1.8.0         PYTHON peer.py deepsparse FILE TOKENS THREADS
python -m venv lc && lc/bin/pip install llama-cpp-python          PYTHON peer.py llama-prefill FILE TOKENS THREADS
                                                                  PYTHON peer.py llama-decode FILE TOKENS THREADS
                                                                  PYTHON peer.py llama-nll FILE BLOCKS THREADS
                                                                  PYTHON peer.py llama-quantize FILE TARGET TYPE

OpenVINO quantizes the fp32 file itself (NNCF, calibrated on random tokens: only the speed counts here). DeepSparse gets
a file that is quantized already. llama.cpp reads GGUF; built from source, as its package is, it uses all that this CPU
has. `llama-nll` prints the summed negative log likelihood of each block of a JSON list of lists of tokens; TYPE of
`llama-quantize` is Q8_0 or Q4_0.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Peer:
    """Another engine, in a process that infers once for each line that it is sent."""

    engine: str
    python: str
    file: Path

    @contextmanager
    def running(self, tokens: int, threads: int) -> Iterator[Callable[[], None]]:
        """A call that runs it once. The way there and back takes some 50 microseconds."""
        command = [self.python, __file__, self.engine, str(self.file), str(tokens), str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, bufsize=1, **pipes) as process:

            def wait_for(word: str) -> None:
                for line in process.stderr:
                    if line.strip() == word:
                        return
                raise SystemExit(f"{self.engine} stopped; run {' '.join(command)} to see why")

            def run() -> None:
                process.stdin.write("\n")
                wait_for("done")

            wait_for("ready")
            yield run
            process.stdin.close()


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


def llama_prefill(path: str, tokens: int, threads: int) -> Callable[[], Any]:
    """Reads a text and computes the odds after its last token."""
    model = Llama(path, threads)
    text = np.random.default_rng(0).integers(1000, 5000, tokens).tolist()

    def run() -> None:
        model.forget(0)
        model.read(text, 0)

    return run


def llama_decode(path: str, tokens: int, threads: int) -> Callable[[], Any]:
    """Reads one more token after a context, which stays as it is."""
    model = Llama(path, threads)
    model.read(np.random.default_rng(0).integers(1000, 5000, tokens).tolist(), 0)

    def run() -> None:
        model.forget(tokens)
        model.read([1000], tokens)

    return run


class Llama:
    """A GGUF model of llama.cpp with one sequence."""

    def __init__(self, path: str, threads: int, context: int = 2048):
        import llama_cpp

        self.lib = llama_cpp
        llama_cpp.llama_backend_init()
        # Kept alive as long as the model: without it llama.cpp writes what it loads to stderr, where answers go.
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.n_threads = settings.n_threads_batch = threads
        model = llama_cpp.llama_load_model_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self.words = llama_cpp.llama_n_vocab(llama_cpp.llama_model_get_vocab(model))
        self.context = llama_cpp.llama_new_context_with_model(model, settings)
        self.batch = llama_cpp.llama_batch_init(context, 0, 1)

    def forget(self, length: int) -> None:
        """Leaves so many tokens of the context."""
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.context), 0, length, -1)

    def read(self, tokens: list[int], start: int, every: bool = False) -> np.ndarray:
        """The logits after the last token, or after each, [rows, words]."""
        self.batch.n_tokens = len(tokens)
        for at, token in enumerate(tokens):
            self.batch.token[at], self.batch.pos[at] = token, start + at
            self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, 0
            self.batch.logits[at] = every or at == len(tokens) - 1
        assert self.lib.llama_decode(self.context, self.batch) == 0
        rows = len(tokens) if every else 1
        return np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (rows, self.words))


def llama_nll(path: str, blocks: str, threads: int) -> list[float]:
    model, found = Llama(path, threads), []
    for block in json.loads(Path(blocks).read_text()):
        model.forget(0)
        logits = model.read(block, 0, every=True)[:-1].astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        log_odds = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        found.append(-float(log_odds[np.arange(len(block) - 1), block[1:]].sum()))
    return found


def llama_quantize(path: str, target: str, kind: str) -> None:
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    settings.allow_requantize = True
    assert llama_cpp.llama_model_quantize(path.encode(), target.encode(), ctypes.byref(settings)) == 0


ENGINES = {
    "openvino": openvino,
    "deepsparse": deepsparse,
    "llama-prefill": llama_prefill,
    "llama-decode": llama_decode,
}

if __name__ == "__main__":
    if sys.argv[1] == "llama-quantize":
        raise SystemExit(llama_quantize(*sys.argv[2:]))
    if sys.argv[1] == "llama-nll":
        print(json.dumps(llama_nll(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
        raise SystemExit
    run = ENGINES[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    run()
    # What the engines print goes elsewhere than the answers.
    print("ready", file=sys.stderr, flush=True)
    for _ in sys.stdin:
        run()
        print("done", file=sys.stderr, flush=True)

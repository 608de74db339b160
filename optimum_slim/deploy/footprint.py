"""Run in a process of its own: loads an ONNX file, runs it once and prints the peak resident memory.

python -m optimum_slim.deploy.footprint FILE BATCH TOKENS -> {"rss_bytes": ...}
"""

from __future__ import annotations

import json
import resource
import sys

import onnxruntime

from optimum_slim.deploy.benchmark import feeds
from optimum_slim.deploy.machine import session_options


def main(path: str, batch: int, tokens: int) -> None:
    session = onnxruntime.InferenceSession(path, session_options(1))
    session.run(None, feeds(session, "prefill", batch, tokens))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"rss_bytes": peak * (1 if sys.platform == "darwin" else 1024)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

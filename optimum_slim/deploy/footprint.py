"""Run in a process of its own: loads an ONNX file, runs it once and prints the peak resident memory.

python -m optimum_slim.deploy.footprint FILE BATCH TOKENS -> {"rss_bytes": ...}
"""

from __future__ import annotations

import json
import sys

import onnxruntime

from optimum_slim.deploy.benchmark import feeds
from optimum_slim.deploy.machine import session_options
from optimum_slim.report.report import peak_rss_bytes


def main(path: str, batch: int, tokens: int) -> None:
    session = onnxruntime.InferenceSession(path, session_options(1))
    session.run(None, feeds(session, "prefill", batch, tokens))
    print(json.dumps({"rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

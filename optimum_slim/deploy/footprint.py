"""Run in a process of its own: loads an ONNX file, runs it once and prints the peak resident memory.

python -m optimum_slim.deploy.footprint FILE BATCH TOKENS [--stock] -> {"rss_bytes": ...}
"""

from __future__ import annotations

import argparse
import json

import onnxruntime

from optimum_slim.deploy.benchmark import feeds
from optimum_slim.deploy.machine import session_options
from optimum_slim.report.report import peak_rss_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("batch", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--stock", action="store_true", help="without our kernels")
    arguments = parser.parse_args()
    session = onnxruntime.InferenceSession(arguments.file, session_options(1, not arguments.stock))
    session.run(None, feeds(session, "prefill", arguments.batch, arguments.tokens))
    print(json.dumps({"rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()

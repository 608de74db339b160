"""How much longer `optimum-cli --help` takes with optimum-slim installed: runs with and without our command, in turns.

python tests/benchmarks/cli_startup.py --json F
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 20
OURS, NONE = "register_slim.py", "register_nothing.py"

# Both sides run this; only the name of the file that optimum-cli is not shown differs.
RUNNER = """
import pathlib, sys
hidden, every = sys.argv.pop(), pathlib.Path.iterdir
pathlib.Path.iterdir = lambda folder: (path for path in every(folder) if path.name != hidden)
sys.argv = ["optimum-cli", "--help"]
from optimum.commands.optimum_cli import main
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help="of each side")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    figures = measure(arguments.runs)
    print("without {without_ms:.1f} ms, with {with_ms:.1f} ms, ratio {ratio:.3f}".format(**figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(runs: int) -> dict[str, float | int]:
    """Medians over `runs` of each side, after one that fills the disk's cache; the ratio is the median over turns."""
    seconds(OURS), seconds(NONE)
    turns = [(seconds(OURS), seconds(NONE)) for _ in range(runs)]
    without, with_us = zip(*turns, strict=True)
    return {
        "runs": runs,
        "without_ms": round(1000 * statistics.median(without), 2),
        "with_ms": round(1000 * statistics.median(with_us), 2),
        "ratio": round(statistics.median(b / a for a, b in turns), 4),
    }


def seconds(hidden: str) -> float:
    """Of one `optimum-cli --help` that does not see the file named `hidden`."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", RUNNER, hidden], capture_output=True, text=True, check=True)
    took = time.perf_counter() - begun
    if ("slim" in done.stdout) == (hidden == OURS):
        raise SystemExit(f"hiding {hidden} did not do what it should:\n{done.stdout}")
    return took


if __name__ == "__main__":
    main()

"""`optimum-cli slim bench`: which of several models is faster here, measured interleaved."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import Any

from optimum_slim.commands.verb import Verb


class BenchCommand(Verb):
    EXAMPLES = """examples:
  optimum-cli slim bench my-classifier-onnx my-classifier-slim
  optimum-cli slim bench a b c --tokens 1,16,128 --batch 1,8 --threads 1,2 --json times.json
"""

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        parser.add_argument("models", nargs="+", help="folders, .onnx files or Hub ids; compared with the first")
        parser.add_argument("--tokens", type=_numbers, default=[128], help="lengths of texts, e.g. 1,16,128")
        parser.add_argument("--batch", type=_numbers, default=[1], help="texts at a time, e.g. 1,8")
        parser.add_argument("--threads", type=_numbers, default=[1], help="threads of a session, e.g. 1,2")
        parser.add_argument("--json", type=Path, help="also write all figures to this file")

    def work(self) -> None:
        from optimum_slim.deploy.benchmark import Target, benchmark, has_cache, speedup
        from optimum_slim.deploy.machine import environment
        from optimum_slim.errors import ModelError
        from optimum_slim.model.checkpoint import find_onnx

        files = {name: find_onnx(name) for name in self.args.models}
        cached = {name: has_cache(path) for name, path in files.items()}
        if len(set(cached.values())) != 1:
            raise ModelError("decoders and encoders cannot be compared: " + ", ".join(files))
        target = Target(self.args.tokens, self.args.batch, self.args.threads)
        rows = benchmark(files, target, decoder=any(cached.values()))
        first = next(iter(rows.values()))
        for points in rows.values():
            for point, reference in zip(points, first, strict=True):
                point["speedup"] = speedup(reference["rounds"], point["rounds"])
        if self.args.json:
            content = {"environment": environment(), "latency": rows}
            self.args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print("\n".join(_table(rows)))


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ArgumentTypeError(f"{text!r} is not a list of numbers from 1 up, e.g. 1,16,128")
    return numbers


def _table(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [f"{'phase':<8}{'batch':>6}{'tokens':>7}{'threads':>8}{'p50 ms':>10}{'p90':>10}{'p99':>10}  speedup  model"]
    for at in range(len(next(iter(rows.values())))):
        for name, points in rows.items():
            row = points[at]
            lines.append(
                f"{row['phase']:<8}{row['batch']:>6}{row['tokens']:>7}{row['threads']:>8}{row['p50']:>10.3f}"
                f"{row['p90']:>10.3f}{row['p99']:>10.3f}{row['speedup']['median']:>8.2f}x  {name}"
            )
    return lines

"""How fast several ONNX files are, measured fairly: interleaved in one run, one at a time, spinning off."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime

from optimum_slim.deploy.machine import session_options
from optimum_slim.errors import ModelError
from optimum_slim.progress import progress

K = TypeVar("K", bound=Hashable)

ROUNDS = 30
RUNS_PER_ROUND = 3
SECONDS = 120  # at most this long for one point of the grid; never fewer than `FEWEST` rounds
FEWEST = 5


@dataclass(frozen=True)
class Target:
    """The loads to be fast at. Every combination is measured; the first of each decides."""

    tokens: list[int] = field(default_factory=lambda: [128])  # of a text; of the context when decoding
    batch: list[int] = field(default_factory=lambda: [1])  # texts at a time
    threads: list[int] = field(default_factory=lambda: [1])  # of ONNX Runtime

    def mistakes(self) -> Iterator[str]:
        for name in ("tokens", "batch", "threads"):
            values = getattr(self, name)
            if not values or any(value < 1 for value in values):
                yield f"{name} must list numbers from 1 up, not {values}"

    @property
    def first(self) -> Target:
        """The load that decides."""
        return Target(self.tokens[:1], self.batch[:1], self.threads[:1])

    def points(self) -> Iterator[tuple[int, int, int]]:
        """(batch, tokens, threads), the deciding one first."""
        for threads in self.threads:
            for batch in self.batch:
                for tokens in self.tokens:
                    yield batch, tokens, threads


def benchmark(
    files: Mapping[str, Path], target: Target, decoder: bool, without_kernels: Collection[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Times each file at each point of the target.

    Args:
        files: ONNX files by name. The first is what the others are compared with.
        target: the points to measure.
        decoder: the files have a cache: also time one token after `tokens` of context (`phase: decode`).
        without_kernels: names whose SlimLinear layers ONNX Runtime runs by its own operators.

    Returns:
        For each file rows `{phase, batch, tokens, threads, p50, p90, p99, rounds}`: milliseconds of one call,
        percentiles over all of its calls; `rounds` the median of each round, for paired ratios.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in files}
    for threads in target.threads:
        sessions = {
            name: onnxruntime.InferenceSession(str(file), session_options(threads, name not in without_kernels))
            for name, file in files.items()
        }
        for batch, tokens, _ in (point for point in target.points() if point[2] == threads):
            for phase in ("prefill", "decode") if decoder else ("forward",):
                timed = _interleaved(sessions, phase, batch, tokens)
                for name, rounds in timed.items():
                    calls = np.concatenate(rounds)
                    rows[name].append(
                        {"phase": phase, "batch": batch, "tokens": tokens, "threads": threads}
                        | {f"p{q}": round(float(np.percentile(calls, q)), 4) for q in (50, 90, 99)}
                        | {"rounds": [round(float(np.median(one)), 4) for one in rounds]}
                    )
    return rows


def in_turns(runs: Mapping[K, Callable[[], Any]], rounds: int, seconds: float, what: str) -> dict[K, list[float]]:
    """Milliseconds of one run of each, a mean for each round; all have their turn in every round.

    Args:
        runs: what to time. rounds: how many turns. seconds: of repeated runs in a turn. what: for the progress.
    """
    times: dict[K, list[float]] = {name: [] for name in runs}
    for _ in progress(range(rounds), what):
        for name, run in runs.items():
            run()
            count, begun = 0, time.perf_counter()
            while time.perf_counter() - begun < seconds:
                run()
                count += 1
            times[name].append((time.perf_counter() - begun) / count * 1000)
    return times


def speedup(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times faster: the median over rounds of the ratio within a round, with the 95 % interval of that
    median from a seeded bootstrap over rounds.

    Args:
        slow, fast: milliseconds of each round, of the same interleaved run.
    """
    ratios = np.array(slow) / np.array(fast)
    drawn = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return {"median": round(float(np.median(ratios)), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session of an ONNX file on one thread.

    Raises:
        ModelError: ONNX Runtime does not load it.
    """
    try:
        return onnxruntime.InferenceSession(str(path), session_options(1))
    except Exception as error:  # onnxruntime raises classes of its C++ module
        raise ModelError(f"{path} does not load in ONNX Runtime: {error}") from error


def has_cache(path: Path) -> bool:
    """Whether an ONNX file is a decoder with key/value cache.

    Raises:
        ModelError: ONNX Runtime does not load it.
    """
    return any(value.name.startswith("past_key_values") for value in open_session(path).get_inputs())


def feeds(session: onnxruntime.InferenceSession, phase: str, batch: int, tokens: int) -> dict[str, np.ndarray]:
    """Inputs of the right names and shapes, the same in every call. Token ids are small numbers: any vocabulary has
    them, and what they are does not change the time."""
    new, past = (1, tokens) if phase == "decode" else (tokens, 0)
    made: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            heads, size = (dim if isinstance(dim, int) else 1 for dim in (value.shape[1], value.shape[3]))
            made[value.name] = np.zeros((batch, heads, past, size), dtype=np.float32)
        elif value.name == "position_ids":
            made[value.name] = np.tile(np.arange(past, past + new, dtype=np.int64), (batch, 1))
        elif value.name == "attention_mask":
            made[value.name] = np.ones((batch, past + new), dtype=np.int64)
        elif value.name == "token_type_ids":
            made[value.name] = np.zeros((batch, new), dtype=np.int64)
        else:
            made[value.name] = np.random.default_rng(0).integers(1, 64, (batch, new))
    return made


def resident_bytes(path: Path, batch: int, tokens: int, kernels: bool = True) -> int | None:
    """Peak resident memory of a fresh process that loads the file and runs it once; None where not to be had.

    Args:
        kernels: False leaves SlimLinear to ONNX Runtime's own operators.
    """
    command = [sys.executable, "-m", "optimum_slim.deploy.footprint", str(path), str(batch), str(tokens)]
    if not kernels:
        command.append("--stock")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout)["rss_bytes"] if done.returncode == 0 else None


def _interleaved(sessions: Mapping[str, Any], phase: str, batch: int, tokens: int) -> dict[str, list[np.ndarray]]:
    inputs = {name: feeds(session, phase, batch, tokens) for name, session in sessions.items()}
    if phase == "decode":
        inputs = {name: with_cache(session, inputs[name], batch, tokens) for name, session in sessions.items()}
    timed: dict[str, list[np.ndarray]] = {name: [] for name in sessions}
    for name, session in sessions.items():
        session.run(None, inputs[name])
    end = time.monotonic() + SECONDS
    for done in progress(range(ROUNDS), f"timing {phase} {batch}x{tokens}"):
        if done >= FEWEST and time.monotonic() > end:
            break
        for name, session in sessions.items():
            timed[name].append(np.array([_milliseconds(session, inputs[name]) for _ in range(RUNS_PER_ROUND)]))
    return timed


def with_cache(session: Any, inputs: dict[str, np.ndarray], batch: int, tokens: int) -> dict[str, np.ndarray]:
    """The true cache of `tokens` of context, whose sizes a graph with symbolic dimensions does not tell."""
    outputs = session.run(None, feeds(session, "prefill", batch, tokens))
    cache = {
        value.name.replace("present", "past_key_values"): output
        for value, output in zip(session.get_outputs(), outputs, strict=True)
        if value.name.startswith("present")
    }
    return inputs | cache


def _milliseconds(session: Any, inputs: dict[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session.run(None, inputs)
    return (time.perf_counter() - start) * 1000

"""Mutated models crash nothing: thousands of them go through a library that watches its every memory access."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.conftest import SOURCES, build

COUNT = int(os.environ.get("OPTIMUM_SLIM_FUZZ_COUNT", "20000"))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The environment of a process that runs a library built with sanitizers, and that library."""
    sanitizer = preloaded()
    if sanitizer is None:
        pytest.skip("needs g++ and its AddressSanitizer")
    library = build(tmp_path_factory.mktemp("sanitized"), "-DOPTIMUM_SLIM_SANITIZE=ON")
    environment = {
        **os.environ,
        "OPTIMUM_SLIM_LIBRARY": str(library),
        "LD_PRELOAD": sanitizer,
        # Python and ONNX Runtime leak at exit by design: leaks are reported, and only those of this library count.
        "LSAN_OPTIONS": "exitcode=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return environment, library


def preloaded() -> str | None:
    """GCC's AddressSanitizer, and the C++ library that it wants to find beside it when Python starts."""
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        try:
            ask = ["g++", f"-print-file-name={name}"]
            asked = subprocess.run(ask, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        found.append(asked.stdout.strip())
    return " ".join(found) if all(Path(path).is_absolute() for path in found) else None


def fuzzed(environment: dict[str, str], count: int, *options: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.fuzz", "--count", str(count)],
        env={**environment, "ASAN_OPTIONS": ":".join(("allocator_may_return_null=1", *options))},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done


@pytest.mark.slow
def test_mutated_models_break_no_memory(watched):
    environment, _ = watched
    done = fuzzed(environment, COUNT, "detect_leaks=0")
    assert "runtime error" not in done.stderr, done.stderr[-5000:]
    for name, outcomes in json.loads(done.stdout).items():
        assert all(outcomes.values()), f"{name}: {outcomes}"  # each of the three happened


@pytest.mark.slow
def test_mutated_models_leak_nothing(watched):
    """Not even what ONNX Runtime made for the library: it has no frame pointers, so that only stacks that are unwound
    slowly show who asked for it."""
    environment, library = watched
    done = fuzzed(environment, COUNT // 20, "detect_leaks=1", "fast_unwind_on_malloc=0", "malloc_context_size=12")
    assert "LeakSanitizer" in done.stderr  # it looked: Python's own leaks are there
    ours = (f"{SOURCES}/", library.name)  # a frame shows its source, or else its library
    leaks = [b for b in done.stderr.split("\n\n") if "leak of" in b and any(mark in b for mark in ours)]
    assert not leaks, "\n\n".join(leaks)[:5000]

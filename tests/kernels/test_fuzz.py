"""Mutated models crash nothing: thousands of them go through a library that watches its every memory access."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.conftest import build

COUNT = int(os.environ.get("OPTIMUM_SLIM_FUZZ_COUNT", "20000"))


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


@pytest.mark.slow
def test_mutated_models_break_no_memory(tmp_path):
    sanitizer = preloaded()
    if sanitizer is None:
        pytest.skip("needs g++ and its AddressSanitizer")
    library = build(tmp_path, "-DOPTIMUM_SLIM_SANITIZE=ON")
    environment = {
        **os.environ,
        "OPTIMUM_SLIM_LIBRARY": str(library),
        "LD_PRELOAD": sanitizer,
        # Python and ONNX Runtime leak at exit by design: leaks are reported, and only those of this library count.
        "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
        "LSAN_OPTIONS": "exitcode=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.fuzz", "--count", str(COUNT)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "runtime error" not in done.stderr, done.stderr[-5000:]
    leaks = [block for block in done.stderr.split("\n\n") if "leak of" in block and library.name in block]
    assert not leaks, "\n\n".join(leaks)[:5000]
    for outcome in ("refused", "failed", "ran"):
        assert f"'{outcome}': 0" not in done.stdout, done.stdout

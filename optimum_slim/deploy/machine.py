"""What the figures were measured on: CPU, threads, versions. And how ONNX Runtime is asked to run there."""

from __future__ import annotations

import platform
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from optimum_slim.kernels.library import library_path, register

_TOLD = ("optimum-slim", "onnxruntime", "optimum", "optimum-onnx", "transformers", "torch", "onnx", "numpy")
_FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512vbmi", "avx512_bf16", "amx_int8",
          "asimddp", "i8mm", "sve")  # fmt: skip


@cache
def cpu_flags() -> tuple[str, ...]:
    """The vector extensions of this CPU that matter for int8; empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    known = set(info.read_text().split()) if info.exists() else set()
    return tuple(flag for flag in _FLAGS if flag in known)


def environment() -> dict[str, object]:
    """CPU, system and versions, as they go into a report."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpu_flags": list(cpu_flags()),
        "cores": len(names) or None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in _TOLD}},
    }


def session_options(threads: int, kernels: bool = True) -> onnxruntime.SessionOptions:
    """Options for measuring: workers that wait by spinning would slow the next session in the same process. SlimLinear
    runs by our kernels where they are built, as for those who load with `optimum_slim.session_options()`.

    Args:
        threads: of one inference; 0: ONNX Runtime's choice.
        kernels: False leaves SlimLinear to ONNX Runtime's own operators, as where optimum-slim is not installed.
    """
    options = onnxruntime.SessionOptions()
    if kernels and library_path() is not None:
        register(options)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options

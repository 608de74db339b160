"""Finds the compiled library and registers it with ONNX Runtime's sessions."""

from __future__ import annotations

import ctypes
import importlib.resources
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

LIBRARY_VARIABLE = "OPTIMUM_SLIM_LIBRARY"  # path of the library to use instead of the installed one
ISA_VARIABLE = "OPTIMUM_SLIM_ISA"  # read when a session is built: avx512vnni, avxvnni, avx2, portable or neon
NAMES = ("liboptimum_slim_kernels.so", "liboptimum_slim_kernels.dylib", "optimum_slim_kernels.dll")


def library_path() -> Path | None:
    """The library, or None where it is not built: no compiler was there when the package was installed."""
    chosen = os.environ.get(LIBRARY_VARIABLE)
    if chosen:
        return Path(chosen) if Path(chosen).is_file() else None
    # In an editable install the package spans two folders, the sources' and the one with what was built.
    folder = importlib.resources.files("optimum_slim.kernels")
    for name in NAMES:
        found = folder.joinpath(name)
        if found.is_file():
            return Path(str(found))
    return None


def register(session_options: onnxruntime.SessionOptions) -> bool:
    """Makes sessions with these options run SlimLinear by our library; without it they run its functions, slower.

    Returns whether that worked; where it did not, one warning says why.
    """
    path = library_path()
    problem = "optimum-slim's kernels are not built; reinstall it where there is a C++ compiler"
    if path is None and os.environ.get(LIBRARY_VARIABLE):
        problem = f"{LIBRARY_VARIABLE} names no file: {os.environ[LIBRARY_VARIABLE]}"
    if path is not None:
        try:
            session_options.register_custom_ops_library(str(path))
            return True
        except Exception as error:  # onnxruntime's own exceptions have no common base
            problem = f"ONNX Runtime refused optimum-slim's kernels ({error})"
    warnings.warn(f"{problem}: SlimLinear runs as plain ONNX operators, which is slower.", stacklevel=2)
    return False


def isa() -> str | None:
    """The instruction set that sessions built now would use; None without the library, or if the one that
    OPTIMUM_SLIM_ISA asks for cannot run here."""
    library = _library()
    return None if library is None else _text(library.optimum_slim_isa())


def supported_isas() -> list[str]:
    """The instruction sets that this CPU and library can run, fastest first."""
    library = _library()
    found: list[str] = []
    while library is not None and (name := _text(library.optimum_slim_supported_isa(len(found)))):
        found.append(name)
    return found


def self_test() -> list[tuple[str, bool]]:
    """Each instruction set that this CPU can run, and whether its outputs are right."""
    from optimum_slim.kernels.self_test import outputs_are_right

    before = os.environ.get(ISA_VARIABLE)
    results = []
    try:
        for name in supported_isas():
            os.environ[ISA_VARIABLE] = name
            results.append((name, outputs_are_right()))
    finally:
        if before is None:
            os.environ.pop(ISA_VARIABLE, None)
        else:
            os.environ[ISA_VARIABLE] = before
    return results


def _library() -> ctypes.CDLL | None:
    path = library_path()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    library.optimum_slim_isa.restype = ctypes.c_char_p
    library.optimum_slim_supported_isa.restype = ctypes.c_char_p
    library.optimum_slim_supported_isa.argtypes = [ctypes.c_int]
    return library


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()

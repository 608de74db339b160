"""Instruction sets that the machine of a test lacks run under an emulator, where one is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from optimum_slim.kernels import library

HERE, KERNELS = Path(__file__).parent, Path(library.__file__).parent
SOURCES = [f"{name}.cpp" for name in ("dispatch", "pack", "pack_blocks", "pack_single", "portable", "slim_linear")]
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra"]


@pytest.mark.slow
def test_neon_computes_what_plain_cpp_computes(tmp_path):
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
    if not (compiler and emulator and (KERNELS / "neon.cpp").exists()):
        pytest.skip("needs aarch64-linux-gnu-g++, qemu-aarch64-static and the kernels' sources")
    subprocess.run(
        [compiler, *FLAGS, "-march=armv8.2-a+dotprod", "-c", "neon.cpp", "-o", str(tmp_path / "neon.o")],
        cwd=KERNELS,
        check=True,
    )
    program = tmp_path / "emulated"
    files = [*SOURCES, str(HERE / "emulated.cpp"), str(tmp_path / "neon.o")]
    subprocess.run(
        [compiler, *FLAGS, "-static", "-DSLIM_NEON", "-I.", *files, "-o", str(program)], cwd=KERNELS, check=True
    )
    done = subprocess.run([emulator, "-cpu", "max", str(program)], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("neon portable ")
    assert done.stdout.endswith(" 0 wrong\n")

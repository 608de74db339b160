"""The library under test: the installed one, or one built on the spot."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from optimum_slim.kernels.library import LIBRARY_VARIABLE, NAMES, library_path

SOURCES = Path(__file__).parents[2] / "optimum_slim" / "kernels"


def build(folder: Path, *options: str) -> Path:
    """Compiles the library into this folder."""
    configure = ["cmake", "-S", str(SOURCES), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", *options]
    for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2"]):
        subprocess.run(command, check=True, capture_output=True)
    return next(folder / name for name in NAMES if (folder / name).is_file())


@pytest.fixture(scope="session", autouse=True)
def library(tmp_path_factory):
    if (path := library_path()) is not None:
        yield path
        return
    if shutil.which("cmake") is None:
        pytest.skip("the kernels are not built, and there is no cmake to build them with")
    try:
        path = build(tmp_path_factory.mktemp("kernels"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the kernels cannot be built here: {error.stderr.decode()[-500:]}")
    os.environ[LIBRARY_VARIABLE] = str(path)
    yield path
    del os.environ[LIBRARY_VARIABLE]

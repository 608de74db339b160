"""Several processes in one test: forked from it, so that they start at once, or started anew by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import debug_launcher

from optimum_slim import processes


def together(work: Callable[..., Any], *arguments: Any, count: int = 2) -> list[Any]:
    """What `work` returns in each of so many processes that have met."""
    with tempfile.TemporaryDirectory() as folder:
        debug_launcher(_worked, (work, arguments, Path(folder)), num_processes=count)
        return [torch.load(Path(folder) / f"{index}.pt", weights_only=False) for index in range(count)]


def apart(script: str, folder: Path) -> list[dict[str, torch.Tensor]]:
    """What a script saves in each of two processes of its own, as `<rank>.pt` beside itself."""
    (folder / "train.py").write_text(script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    places = {"PYTHONPATH": str(Path(__file__).parents[1]), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, folder / "train.py"], check=True, env=os.environ | places, timeout=300)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def _worked(work: Callable[..., Any], arguments: tuple[Any, ...], folder: Path) -> None:
    processes.join(cpu=True)
    # Threads of the process that was forked are not here, and would be waited for; accelerate asks for more of them.
    torch.set_num_threads(1)
    torch.set_num_threads = lambda count: None
    torch.save(work(*arguments), folder / f"{processes.index()}.pt")

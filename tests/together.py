"""Several processes in one test: forked from it, so that they start at once."""

from __future__ import annotations

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


def _worked(work: Callable[..., Any], arguments: tuple[Any, ...], folder: Path) -> None:
    processes.join(cpu=True)
    # Threads of the process that was forked are not here, and would be waited for; accelerate asks for more of them.
    torch.set_num_threads(1)
    torch.set_num_threads = lambda count: None
    torch.save(work(*arguments), folder / f"{processes.index()}.pt")

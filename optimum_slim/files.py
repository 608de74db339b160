"""Files that are never there in part, whenever a run is stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def wholly(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written under another name and renamed."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    write(unfinished)
    unfinished.replace(path)

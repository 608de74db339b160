"""What a recipe may name as its model or its texts: the demo, a path, or an id of the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

DEMO = "demo"


def local_path(source: str, kind: Literal["model", "data"]) -> Path | None:
    """Where a source lies on this machine: in the package for the demo, else where it says; None if not here."""
    if source == DEMO:
        return Path(__file__).with_name("demo") / kind
    path = Path(source).expanduser()
    return path if path.exists() else None


def told_name(source: str) -> str:
    """How a source is called in what is published: a path by its last part alone, anything else as it is."""
    path = local_path(source, "model")
    if path is None or source == DEMO:
        return source
    name = path.resolve().name
    return f"./{name}" if name == DEMO else name

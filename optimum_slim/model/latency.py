"""How long one linear takes on this CPU: measured points, and what lies between them."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from optimum_slim.files import wholly


@dataclass(frozen=True)
class Point:
    """One linear, [rows, k] to [rows, n]."""

    op: str  # "SlimLinear", "int8" (ONNX Runtime's own, dynamic) or "fp32"
    k: int
    n: int
    rows: int
    threads: int
    pattern: str = "dense"
    sparsity: float = 0.0  # share of the weights that are zero


@dataclass
class LatencyTable:
    """Milliseconds of measured points."""

    milliseconds: dict[Point, float] = field(default_factory=dict)

    def lookup(self, point: Point) -> float | None:
        """The time of a point: as measured, or interpolated linearly between the nearest sparsities, or rows, that were
        measured with all else equal; None outside of what was measured."""
        if point in self.milliseconds:
            return self.milliseconds[point]
        for axis in ("sparsity", "rows"):
            alike = {
                getattr(one, axis): time
                for one, time in self.milliseconds.items()
                if replace(one, **{axis: getattr(point, axis)}) == point
            }
            found = _between(getattr(point, axis), sorted(alike.items()))
            if found is not None:
                return found
        return None

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all: two runs may fill the same table."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [[*astuple(point), round(time, 6)] for point, time in self.milliseconds.items()]
        wholly(path, lambda to: to.write_text(json.dumps(rows) + "\n", encoding="utf-8"))

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """The table of a file; an empty one where there is none or it cannot be read, as it can be measured again."""
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            return cls({Point(*row[:-1]): float(row[-1]) for row in rows})
        except (OSError, ValueError, TypeError):
            return cls()


def _between(x: float, known: Sequence[tuple[float, float]]) -> float | None:
    at = bisect_left(known, (x,))
    if at == 0 or at == len(known):
        return None
    (low, before), (high, after) = known[at - 1], known[at]
    return before + (after - before) * (x - low) / (high - low)

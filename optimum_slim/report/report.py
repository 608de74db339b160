"""What a run has to tell, as plain rows that are written as JSON."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = dict[str, Any]


@dataclass
class Report:
    """The content of slim_report.json."""

    model: Row = field(default_factory=dict)
    data: Row = field(default_factory=dict)
    task: str = ""
    recipe: Row = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    original: Row = field(default_factory=dict)  # the fp32 ONNX file of the model as it was
    baseline_int8: Row = field(default_factory=dict)  # Optimum's own int8 of it
    final: Row = field(default_factory=dict)  # what was handed out
    samples: list[Row] = field(default_factory=list)  # what a decoder and the original write
    budget: Row = field(default_factory=dict)  # what was wanted, what was reached, and what was done for it
    verify: Row = field(default_factory=dict)  # how far the files are from the model in memory
    environment: Row = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / "slim_report.json").write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Report:
        return cls(**json.loads((folder / "slim_report.json").read_text(encoding="utf-8")))


def parameters_of(model: PreTrainedModel) -> int:
    """Parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def zeros_of(model: PreTrainedModel) -> int:
    """Parameters that are exactly zero."""
    # Imported here: who only reads a report waits for no torch.
    from optimum_slim.model.streamed import in_parts

    return sum(int((parameter == 0).sum()) for part in in_parts(model) for parameter in part)


def peak_rss_bytes() -> int:
    """The most memory this process has held so far. Linux counts `ru_maxrss` on from the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def latency_row(rows: list[Row]) -> Row:
    """The file's speed as reports tell it: all points of the grid, and the deciding one by itself."""
    told = [{key: value for key, value in row.items() if key != "rounds"} for row in rows]
    return {"latency": told, "latency_ms": {q: told[0][q] for q in ("p50", "p90", "p99")}}

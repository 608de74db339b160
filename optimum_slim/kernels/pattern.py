"""The patterns in which a layer's weights may be kept (FORMAT.md)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """Weights are kept or dropped in blocks of some neighbouring inputs, shared by some neighbouring outputs."""

    name: str
    inputs: int
    outputs: int

    @property
    def kind(self) -> str:
        """One of `KINDS`: how kept weights are stored, as it stands in the operator's name."""
        if self.name == "dense":
            return ""
        return "Singles" if self.inputs * self.outputs == 1 else "Blocks"


KINDS = ("", "Blocks", "Singles")

PATTERNS: dict[str, Pattern] = {
    "unstructured": Pattern("unstructured", 1, 1),
    "2:4": Pattern("2:4", 1, 1),  # of 4 neighbouring inputs of an output at most 2 are kept
    "4x1": Pattern("4x1", 4, 1),
    "4x2": Pattern("4x2", 4, 2),
    "4x4": Pattern("4x4", 4, 4),
    "dense": Pattern("dense", 1, 1),  # every weight is kept
}


def pattern_named(name: str) -> Pattern:
    if name not in PATTERNS:
        raise ValueError(f"no pattern is named {name!r}; there are {', '.join(PATTERNS)}")
    return PATTERNS[name]

"""Which layer of the teacher each layer of the student follows. Blocks count from 1, as the embeddings' output is 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def spread(student: int, teacher: int) -> dict[int, int]:
    """The teacher's layer that each of the student's follows, 0 being the embeddings: {0: 0, 1: 2, 2: 4, 3: 6}."""
    return {layer: layer * teacher // student for layer in range(student + 1)}


def absent(layers: Mapping[int, int], first: int, student: int, teacher: int) -> Iterator[str]:
    """What is wrong with a setting that pairs layers, in words for the user.

    Args:
        layers: the teacher's layer for each of the student's. first: the lowest layer there is, 0 or 1.
        student, teacher: how many blocks they have.
    """
    for layer, followed in layers.items():
        if not first <= layer <= student or not first <= followed <= teacher:
            yield (
                f"layers: {{{layer}: {followed}}} is not there; the model has layers {first} to {student}, "
                f"its teacher {first} to {teacher}"
            )

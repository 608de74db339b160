"""Which layers suffer most from low precision, or from zeros: each is changed alone, and what changes then is its
doing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim.deploy.lowering import SMALLEST
from optimum_slim.deploy.parts import linears_of
from optimum_slim.deploy.verify import first_output, load_ort
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.progress import progress
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.task import Example, Task, in_turn, without_labels
from optimum_slim.training.losses import soft_classes, soft_labels

TEXTS = 32  # of validation that layers are ranked on, at most
VALUES = 2**25  # of outputs that are kept to compare with: a language model's are large
MOST = 64  # groups that are tried one by one; of larger models parts of blocks, or blocks, are tried together
WORST = 1e9  # far more than any finite answers are apart

Kind = Literal["classes", "labels", "vectors"]


def sensitivity(alone: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Ranks layers by what leaving them as they were gains for what it costs: bytes, and about as much time.

    Measured around the model as it was, as HAWQ's second derivatives are (arXiv:1905.03696): there small errors add up,
    while around the changed one a layer shows nothing as long as another ruins the answers.

    Args:
        alone: divergence from the unchanged model, at least 0, with one layer alone in low precision, or sparse, by
            layer.
        sizes: weights of each layer, above 0.

    Returns:
        Each layer's share of the sum of divergences; those with the highest share for each weight first, equal ones in
        the order of `alone`.
    """
    total = sum(alone.values())
    shares = {name: one / total if total > 0 else 0.0 for name, one in alone.items()}
    return dict(sorted(shares.items(), key=lambda one: -one[1] / sizes[one[0]]))


def fewest(most: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number from 1 to `most` that holds, if with it every larger one does; None where `most` does not.
    Doubles, then halves: small numbers are asked about first.

    Args:
        most: at least 1. holds: asked about each number once.
    """
    failing, found = 0, 1
    while not holds(found):
        if found == most:
            return None
        failing, found = found, min(2 * found, most)
    while found - failing > 1:
        middle = (failing + found) // 2
        if holds(middle):
            found = middle
        else:
            failing = middle
    return found


def divergence(outputs: Sequence[Tensor], reference: Sequence[Tensor], kind: Kind) -> float:
    """How far answers are from those of a reference: 0 where they are equal, `WORST` where one is not finite.

    Args:
        outputs, reference: float32 for each text.
        kind: `classes`: logits [..., classes], the KL divergence of their probabilities in nats; `labels`: logits of
            labels that do not exclude each other, the same of each; both as means over texts. `vectors`: values of any
            shape, the squared error as a share of the reference's square.
    """
    pairs = list(zip(outputs, reference, strict=True))
    if kind == "vectors":
        found = float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs))
    else:
        distance = soft_classes if kind == "classes" else soft_labels
        found = float(torch.stack([distance(a, b, 1.0) for a, b in pairs]).mean())
    return max(0.0, found) if math.isfinite(found) else WORST  # rounding may leave equal answers a little below 0


def kind_of(task: Task) -> Kind:
    """What the outputs of a task's models are."""
    if task.name == "feature-extraction" or (task.name == "text-classification" and task.config.num_labels == 1):
        return "vectors"
    return "labels" if task.config.problem_type == "multi_label_classification" else "classes"


@dataclass(frozen=True)
class Unit:
    """Weights that are left in high precision together."""

    weights: tuple[str, ...]  # torch names
    size: int


def units_of(model: PreTrainedModel, weights: Iterable[str], most: int = MOST) -> dict[str, Unit]:
    """The weights one by one; of models with more than `most`, those of each block's attention and feed-forward
    together; of very deep ones those of each block.

    Args:
        weights: torch names of linears and embeddings. Those too small to be quantized are left out.
    """
    large = [name for name in weights if model.get_parameter(name).numel() >= SMALLEST]
    parts = {
        f"{name}.weight": (block.name, part) for block in blocks_of(model) for name, part in linears_of(block).items()
    }
    groupings: tuple[Callable[[str], str], ...] = (
        lambda name: name,
        lambda name: " ".join(parts.get(name, (name,))),
        lambda name: parts.get(name, (name,))[0],
    )
    for grouping in groupings:
        grouped: dict[str, list[str]] = {}
        for name in large:
            grouped.setdefault(grouping(name), []).append(name)
        if len(grouped) <= most:
            break
    sizes = {name: model.get_parameter(name).numel() for name in large}
    return {name: Unit(tuple(group), sum(map(sizes.__getitem__, group))) for name, group in grouped.items()}


@dataclass(frozen=True)
class Probe:
    """A few validation texts, and a reference's outputs for them."""

    task: Task
    examples: Sequence[Example]
    reference: Sequence[Tensor]

    @classmethod
    def of(cls, validation: Evaluation, model: Any) -> Probe:
        """Takes texts from all over each set, as many as there is room for.

        Args:
            model: the reference, a torch model or an ORTModel.
        """
        task, share = validation.task, max(1, TEXTS // len(validation.sets))
        examples, reference = list[Example](), list[Tensor]()
        chosen = [rows[:: max(1, -(-len(rows) // share))] for rows in validation.sets.values()]
        room = VALUES
        for example in in_turn(chosen):
            if reference and room < reference[-1].numel():
                break
            examples.append(example)
            reference.append(outputs(model, task, example))
            room -= reference[-1].numel()
        return cls(task, examples, reference)

    def divergence(self, model: Any) -> float:
        """Of another model from the reference."""
        return divergence([outputs(model, self.task, one) for one in self.examples], self.reference, kind_of(self.task))


def outputs(model: Any, task: Task, example: Example) -> Tensor:
    """Logits or last hidden states of one text, without the dimension of batches: float32."""
    return first_output(model, without_labels(task.collate([example])))[0]


def measured(
    units: Mapping[str, Unit], probe: Probe, make: Callable[[Sequence[str]], Path]
) -> tuple[list[Unit], dict[str, float]]:
    """Brings each unit to low precision alone.

    Args:
        make: writes the low precision with these weights left high, and returns its folder.

    Returns:
        As `in_order`.
    """
    alone = {}
    for name in progress(list(units), "bringing single layers to low precision"):
        others = [weight for other, unit in units.items() if other != name for weight in unit.weights]
        alone[name] = probe.divergence(load_ort(make(others), type(probe.task)))
    return in_order(units, alone)


def in_order(units: Mapping[str, Unit], alone: Mapping[str, float]) -> tuple[list[Unit], dict[str, float]]:
    """The units in the order of `sensitivity`, and for each weight the share of its unit, to four digits."""
    shares = sensitivity(alone, {name: unit.size for name, unit in units.items()})
    by_weight = {weight: round(share, 4) for name, share in shares.items() for weight in units[name].weights}
    return [units[name] for name in shares], by_weight

"""Which layers suffer most from low precision: each is brought to it alone, and what changes then is its doing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim.deploy.lowering import SMALLEST
from optimum_slim.deploy.parts import linears_of
from optimum_slim.deploy.verify import load_ort
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.progress import progress
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.task import Example, Task
from optimum_slim.training.losses import soft_classes, soft_labels

TEXTS = 32  # of validation that layers are ranked on, at most
VALUES = 2**25  # of outputs that are kept to compare with: a language model's are large
MOST = 64  # groups that are tried one by one; of larger models parts of blocks, or blocks, are tried together

Kind = Literal["classes", "labels", "vectors"]


def sensitivity(alone: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Ranks layers by what leaving them in high precision gains for what it costs: bytes, and about as much time.

    Measured around the fp32 model, as HAWQ's second derivatives are (arXiv:1905.03696): there small errors add up,
    while around the low one a layer shows nothing as long as another ruins the answers.

    Args:
        alone: divergence from the fp32 model, at least 0, with one layer alone in low precision, by layer.
        sizes: weights of each layer, above 0.

    Returns:
        Each layer's share of the sum of divergences; those with the highest share for each weight first, equal ones in
        the order of `alone`.
    """
    total = sum(alone.values())
    shares = {name: one / total if total > 0 else 0.0 for name, one in alone.items()}
    return dict(sorted(shares.items(), key=lambda one: -one[1] / sizes[one[0]]))


def divergence(outputs: Sequence[Tensor], reference: Sequence[Tensor], kind: Kind) -> float:
    """How far answers are from those of a reference, 0 where they are equal.

    Args:
        outputs, reference: float32 for each text.
        kind: `classes`: logits [..., classes], the KL divergence of their probabilities in nats; `labels`: logits of
            labels that do not exclude each other, the same of each; both as means over texts. `vectors`: values of any
            shape, the squared error as a share of the reference's square.
    """
    pairs = list(zip(outputs, reference, strict=True))
    if kind == "vectors":
        return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs))
    found = [soft_classes(a, b, 1.0) if kind == "classes" else soft_labels(a, b, 1.0) for a, b in pairs]
    return max(0.0, float(torch.stack(found).mean()))  # rounding may leave equal answers a little below


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
    """A few validation texts, and the fp32 model's outputs for them."""

    task: Task
    examples: Sequence[Example]
    reference: Sequence[Tensor]

    @classmethod
    def of(cls, validation: Evaluation, source: Path) -> Probe:
        """Takes texts from all over each set, as many as there is room for.

        Args:
            source: folder of the fp32 export.
        """
        task, share = validation.task, max(1, TEXTS // len(validation.sets))
        model, examples, reference = load_ort(source, type(task)), list[Example](), list[Tensor]()
        chosen = [rows[:: max(1, -(-len(rows) // share))] for rows in validation.sets.values()]
        room = VALUES
        for at in range(max(map(len, chosen))):
            for example in (rows[at] for rows in chosen if at < len(rows)):
                if reference and room < reference[-1].numel():
                    return cls(task, examples, reference)
                examples.append(example)
                reference.append(outputs(model, task, example))
                room -= reference[-1].numel()
        return cls(task, examples, reference)

    def divergence(self, folder: Path) -> float:
        """Of the file in a folder."""
        model = load_ort(folder, type(self.task))
        return divergence([outputs(model, self.task, one) for one in self.examples], self.reference, kind_of(self.task))


@torch.no_grad()
def outputs(model: Any, task: Task, example: Example) -> Tensor:
    """Logits or last hidden states of one text, without the dimension of batches: float32."""
    batch = {name: value for name, value in task.collate([example]).items() if name != "labels"}
    extra = {"use_cache": False} if task.name == "text-generation" else {}
    found = model(**batch, **extra)
    return (found.logits if "logits" in found else found.last_hidden_state)[0].float()


def measured(
    units: Mapping[str, Unit], probe: Probe, make: Callable[[Sequence[str]], Path]
) -> tuple[list[Unit], dict[str, float]]:
    """Brings each unit to low precision alone.

    Args:
        make: writes the low precision with these weights left high, and returns its folder.

    Returns:
        The units in the order of `sensitivity`, and for each weight the share of its unit.
    """
    alone = {}
    for name in progress(list(units), "bringing single layers to low precision"):
        others = [weight for other, unit in units.items() if other != name for weight in unit.weights]
        alone[name] = probe.divergence(make(others))
    shares = sensitivity(alone, {name: unit.size for name, unit in units.items()})
    by_weight = {weight: round(share, 4) for name, share in shares.items() for weight in units[name].weights}
    return [units[name] for name in shares], by_weight

"""Judge a model on a task: the same code for a torch model and for an ORTModel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from optimum_slim.data.through import outputs_of
from optimum_slim.errors import DataError
from optimum_slim.model.streamed import disk_of
from optimum_slim.progress import progress
from optimum_slim.tasks.task import Example, Metrics, Task, loss_of_quality, without_labels

Outcomes = Mapping[str, list[Any]]  # by set


@dataclass(frozen=True)
class Evaluation:
    """The tokenized texts that models are compared on, by set, and what the original model made of them."""

    task: Task
    sets: Mapping[str, list[Example]]
    original: Outcomes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, task: Task, rows: Mapping[str, Dataset]) -> Evaluation:
        """Tokenizes the rows of each set.

        Raises:
            DataError: as `Task.examples`, or there are no labels for a task that is judged by them.
        """
        sets = {name: task.examples(part, task.data.limit) for name, part in rows.items()}
        if task.needs_labels and any("labels" not in examples[0] for examples in sets.values()):
            raise DataError("data.label: no column of labels was found; name it under data.label")
        return cls(task, sets)

    def outcomes(self, model: Any, batch_size: int = 1) -> Outcomes:
        """Runs `model` over all sets. One text at a time is how a server meets them, and it matters: a dynamic
        activation scale is shared by everything in a batch, padding included."""
        return {name: run(self.task, model, examples, batch_size, name) for name, examples in self.sets.items()}

    def against(self, model: Any) -> Evaluation:
        """The same texts, compared with what `model` makes of them one by one."""
        return replace(self, original=self.outcomes(model))

    def loss(self, outcomes: Outcomes) -> float:
        """How much worse these are than what they are compared with, as `loss_of_quality`."""
        return loss_of_quality(self.task, self.metrics(self.original or {}), self.metrics(outcomes))

    def metrics(self, outcomes: Outcomes) -> Metrics:
        """The figures of every set, named `metric` or `metric/set`."""
        figures: Metrics = {}
        for name, examples in self.sets.items():
            original = None if self.original is None else self.original[name]
            found = self.task.metrics(outcomes[name], examples, original)
            figures |= {f"{metric}/{name}" if name else metric: value for metric, value in found.items()}
        return figures

    def quality(self, model: Any, batch_size: int = 1) -> Metrics:
        return self.metrics(self.outcomes(model, batch_size))

    @torch.no_grad()
    def compared(self, model: Any, original: Any) -> Metrics:
        """The quality, and how far a model's odds are from the original's, KL(original || model) in nats a token, as
        `kl_divergence` or `kl_divergence/set`, where the task tells."""
        if not self.task.compares_odds:
            return self.quality(model)
        outcomes, figures = dict[str, list[Any]](), dict[str, float]()
        for name, examples in self.sets.items():
            found: list[tuple[float, int]] = []
            outcomes[name] = []
            for example in progress(examples, f"comparing {name}".strip()):
                batch = self.task.collate([example])
                outputs, truth = (forward(self.task, one, batch) for one in (model, original))
                outcomes[name] += self.task.outcomes(outputs, batch)
                found += self.task.divergences(outputs, truth, batch)
            mean = sum(nats for nats, _ in found) / sum(tokens for _, tokens in found)
            figures[f"kl_divergence/{name}" if name else "kl_divergence"] = mean
        return self.metrics(outcomes) | figures


@torch.no_grad()
def run(task: Task, model: Any, examples: Sequence[Example], batch_size: int, name: str = "") -> list[Any]:
    """The task's outcomes for each example, in order. Batches are filled by length, so that little is padding."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))
    found: list[Any] = [None] * len(examples)
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches = [task.collate([examples[i] for i in chosen]) for chosen in parts]
    doing = progress(zip(parts, batches, _answers(task, model, batches)), f"evaluating {name}".strip(), len(parts))
    for chosen, batch, outputs in doing:
        for i, outcome in zip(chosen, task.outcomes(outputs, batch), strict=True):
            found[i] = outcome
    return found


def _answers(task: Task, model: Any, batches: Sequence[Mapping[str, Tensor]]) -> Iterator[Any]:
    """The outputs of each batch; a model that stays on the disk runs block by block over many."""
    if disk_of(model) is not None:
        yield from outputs_of(model, [without_labels(batch) for batch in batches])
        return
    for batch in batches:
        yield forward(task, model, batch)


def forward(task: Task, model: Any, batch: Mapping[str, Tensor]) -> Any:
    """The outputs of a torch model or an ORTModel for a batch."""
    inputs = {key: value.to(model.device) for key, value in without_labels(batch).items()}
    return model(**inputs, **({"use_cache": False} if task.name == "text-generation" else {}))

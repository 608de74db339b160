"""What a task is: how rows become batches, and how outputs of a torch model or an ORTModel become metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from optimum_slim.data.texts import Data, label_column, text_columns
from optimum_slim.errors import DataError

Example = dict[str, Any]  # tokenized inputs of one text or block, as lists, and `labels` where there are any
Metrics = dict[str, float]
T = TypeVar("T")

IGNORED = -100  # the label of a token that losses and metrics pass over: special ones, all but a word's first, padding


@dataclass(frozen=True)
class Task:
    """One task, bound to a model's config and tokenizer. The class variables are its row in the table of tasks."""

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]  # endings of the transformers classes that do this task
    ort_class: ClassVar[str]  # of optimum.onnxruntime
    needs_labels: ClassVar[bool] = False  # nothing can be judged without them
    labels_tokens: ClassVar[bool] = False  # a label for each token, not for the whole text
    answers_tokens: ClassVar[bool] = False  # answers over the vocabulary; the labels are made of the text itself
    compares_odds: ClassVar[bool] = False  # it tells how far a model's odds are from another's
    relative: ClassVar[bool] = False  # losses are told as a share of the original's figure, as for perplexity

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: Data
    folder: Path  # of the original model: some tasks read files that other libraries keep there

    @property
    def metric(self) -> str:
        """The name of the figure that decides."""
        raise NotImplementedError

    def examples(self, rows: Dataset, limit: int | None = None, labelled: bool = True) -> list[Example]:
        """Tokenizes rows, at most `limit` of them.

        Raises:
            DataError: a column is missing, or a label is not one of the model's.
        """
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        columns = [list_of_texts(rows, column) for column in text_columns(rows, self.data.text)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.data.max_length)
        examples = [{key: encoded[key][i] for key in encoded} for i in range(len(rows))]
        name = label_column(rows, self.data.label) if labelled else None
        if name is not None:
            for i, (example, label) in enumerate(zip(examples, rows[name], strict=True)):
                example["labels"] = self.label(label, f"row {i + 1}, column {name}")
        return examples

    def examples_of_texts(self, rows: Dataset) -> list[Example]:
        """Tokenizes rows that have no column but their texts: with labels only where these are made of the text."""
        bound = replace(self, data=replace(self.data, text=list(rows.column_names)))
        return bound.examples(rows, labelled=self.answers_tokens) if len(rows) else []

    def label(self, value: Any, where: str) -> Any:
        """The label as the model counts it; `where` names the place for an error."""
        return value

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Pads examples to their longest: int64 [batch, tokens], and `labels` as a tensor. Where only some texts have
        labels, those of the others' tokens are `IGNORED`; labels of whole texts are those of the texts that have any,
        and `labelled`, bool [batch], tells which these are."""
        inputs = [without_labels(example) for example in examples]
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt"))
        labels = [example["labels"] for example in examples if "labels" in example]
        if labels and self.labels_tokens:
            every = [example.get("labels", []) for example in examples]
            batch["labels"] = pad_labels(every, batch["input_ids"].shape[1], self.tokenizer.padding_side)
        elif labels:
            batch["labels"] = torch.tensor(labels)
            if len(labels) < len(examples):
                batch["labelled"] = torch.tensor(["labels" in example for example in examples])
        return batch

    def outcomes(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        """What the metrics need to remember of each text of a batch, from the model's outputs."""
        raise NotImplementedError

    def metrics(self, outcomes: list[Any], examples: list[Example], original: list[Any] | None) -> Metrics:
        """Figures over a whole set; `original`: the same of the original model, where the task compares with it."""
        raise NotImplementedError

    def divergences(self, outputs: Any, original: Any, batch: Mapping[str, Tensor]) -> list[tuple[float, int]]:
        """How far a model's odds are from the original's, for each text of a batch, from the outputs of both: nats,
        summed, and over how many tokens."""
        raise NotImplementedError

    def label_id(self, value: Any, where: str) -> int:
        """A class as a number: strings by label2id, numbers as they are.

        Raises:
            DataError: the model has no such class.
        """
        labels = self.config.label2id or {}
        if isinstance(value, str) and value in labels:
            return int(labels[value])
        if isinstance(value, int | float) and value in range(self.config.num_labels):
            return int(value)
        raise DataError(f"data.label: {where} is {value!r}; the model's labels are {', '.join(map(str, labels))}")


def without_labels(inputs: Mapping[str, T]) -> dict[str, T]:
    """An example or a batch as a model is asked about it."""
    return {name: value for name, value in inputs.items() if name != "labels"}


def in_turn(sets: Iterable[Sequence[T]]) -> Iterator[T]:
    """The first of each set, then the second of each, and so on, as far as they have any."""
    parts = list(sets)
    for at in range(max(map(len, parts), default=0)):
        yield from (one[at] for one in parts if at < len(one))


def list_of_texts(rows: Dataset | Mapping[str, Any], column: str, before: int = 0) -> list[str]:
    """A column of texts, of a data set or of one batch of it that has `before` rows before it.

    Raises:
        DataError: a row holds something else, or nothing.
    """
    values = list(rows[column])
    wrong = next((at for at, value in enumerate(values) if not isinstance(value, str)), None)
    if wrong is not None:
        raise DataError(f"data.text: row {before + wrong + 1}, column {column} is {values[wrong]!r}, not a text")
    return values


def pad_labels(labels: Sequence[Sequence[int]], length: int, side: str) -> Tensor:
    """Labels of each token, filled up to `length` with `IGNORED` on the side where the tokenizer pads."""
    padded = torch.full((len(labels), length), IGNORED)
    for row, values in zip(padded, labels, strict=True):
        part = slice(0, len(values)) if side == "right" else slice(length - len(values), length)
        row[part] = torch.tensor(values)
    return padded


def rank_correlation(found: Sequence[float] | np.ndarray, truth: Sequence[float] | np.ndarray) -> float:
    """Spearman's correlation; 0 where all values of one side are equal and nothing can be ranked."""
    if len(set(found)) < 2 or len(set(truth)) < 2:
        return 0.0
    return float(spearmanr(found, truth).statistic)


def loss_of_quality(task: Task, before: Metrics, after: Metrics) -> float:
    """How much worse `after` is by the task's deciding metric, in the worst of its sets: a difference for accuracies,
    a share for perplexities. Below zero where it got better."""
    drops = []
    for name, old in before.items():
        if name.split("/")[0] == task.metric and name in after:
            drops.append(after[name] / old - 1 if task.relative else old - after[name])
    return max((drop if math.isfinite(drop) else math.inf for drop in drops), default=0.0)

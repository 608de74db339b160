"""A label for each word: entities, parts of speech."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from seqeval.metrics import f1_score
from torch import Tensor

from optimum_slim.data.texts import label_column, one_text_column
from optimum_slim.errors import DataError
from optimum_slim.tasks.task import IGNORED, Example, Metrics, Task, list_of_texts


class TokenClassification(Task):
    name = "token-classification"
    architectures = ("ForTokenClassification",)
    ort_class = "ORTModelForTokenClassification"
    needs_labels = True
    labels_tokens = True
    metric = "f1"

    def examples(self, rows: Dataset, limit: int | None = None, labelled: bool = True) -> list[Example]:
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        column = one_text_column(rows, self.data.text)
        name = label_column(rows, self.data.label) if labelled else None
        words = list(rows[column])
        split = bool(words) and isinstance(words[0], list)
        if not split:
            words = list_of_texts(rows, column)
        if name is not None and not split:
            raise DataError(f"data.text: column {column} must hold lists of words to go with labels, not plain text")
        for at, row in enumerate(words if split else ()):
            if not isinstance(row, list) or not all(isinstance(word, str) for word in row):
                raise DataError(f"data.text: row {at + 1}, column {column} is {row!r}, not a list of words")
        encoded = self.tokenizer(words, is_split_into_words=split, truncation=True, max_length=self.data.max_length)
        examples = [{key: encoded[key][i] for key in encoded} for i in range(len(rows))]
        if name is not None:
            for i, (example, labels) in enumerate(zip(examples, rows[name], strict=True)):
                if not isinstance(labels, list) or len(labels) != len(words[i]):
                    raise DataError(f"data.label: row {i + 1} has {len(words[i])} words, but as labels {labels!r}")
                places = encoded.word_ids(i)
                first = [word is not None and word not in places[:at] for at, word in enumerate(places)]
                example["labels"] = [
                    self.label_id(labels[word], f"row {i + 1}, column {name}") if starts else IGNORED
                    for word, starts in zip(places, first, strict=True)
                ]
        return examples

    def outcomes(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        found = outputs.logits.argmax(-1).cpu()
        return [row[mask].tolist() for row, mask in zip(found, batch["attention_mask"].bool().cpu(), strict=True)]

    def metrics(self, outcomes: list[Any], examples: list[Example], original: list[Any] | None) -> Metrics:
        """Entity-level F1 as CoNLL counts it (seqeval)."""
        names = self.config.id2label or {}
        truth, guess = [], []
        for example, found in zip(examples, outcomes, strict=True):
            pairs = [(a, b) for a, b in zip(example["labels"], found, strict=True) if a != IGNORED]
            truth.append([names[a] for a, _ in pairs])
            guess.append([names[b] for _, b in pairs])
        return {"f1": float(f1_score(truth, guess, zero_division=0))}

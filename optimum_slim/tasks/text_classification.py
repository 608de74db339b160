"""One label, several, or a number for a text or a pair of texts: classifiers, regressors and rerankers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torch import Tensor

from optimum_slim.errors import DataError
from optimum_slim.tasks.task import Example, Metrics, Task, rank_correlation


class TextClassification(Task):
    name = "text-classification"
    architectures = ("ForSequenceClassification",)
    ort_class = "ORTModelForSequenceClassification"
    needs_labels = True

    @property
    def kind(self) -> str:
        """single | multi | number. One output is a number, as rerankers give."""
        if self.config.problem_type == "multi_label_classification":
            return "multi"
        return "number" if self.config.num_labels == 1 or self.config.problem_type == "regression" else "single"

    @property
    def metric(self) -> str:
        return {"single": "accuracy", "multi": "f1_micro", "number": "rank_quality"}[self.kind]

    def label(self, value: Any, where: str) -> Any:
        if self.kind == "single":
            return self.label_id(value, where)
        if self.kind == "number":
            if not isinstance(value, int | float):
                raise DataError(f"data.label: {where} is {value!r}; a model with one output needs numbers")
            return float(value)
        classes = self.config.num_labels
        if isinstance(value, list) and len(value) == classes and all(v in (0, 1) for v in value):
            return [float(v) for v in value]
        if not isinstance(value, list):
            raise DataError(f"data.label: {where} is {value!r}; several labels are given as a list")
        chosen = {self.label_id(one, where) for one in value}
        return [float(i in chosen) for i in range(classes)]

    def outcomes(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        logits = outputs.logits.float().cpu().numpy()
        if self.kind == "single":
            return list(logits.argmax(-1))
        return list(logits > 0) if self.kind == "multi" else list(logits[:, 0])

    def metrics(self, outcomes: list[Any], examples: list[Example], original: list[Any] | None) -> Metrics:
        """`rank_quality`: average precision where labels are 0 and 1 (rerankers), else Spearman's correlation."""
        labels, found = np.array([example["labels"] for example in examples]), np.array(outcomes)
        if self.kind == "single":
            return {"accuracy": float(accuracy_score(labels, found))}
        if self.kind == "multi":
            return {"f1_micro": float(f1_score(labels, found, average="micro", zero_division=0.0))}
        if set(labels) == {0.0, 1.0}:
            return {"rank_quality": float(average_precision_score(labels, found))}
        return {"rank_quality": rank_correlation(found, labels)}

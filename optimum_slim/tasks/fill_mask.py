"""Guess hidden tokens: masked language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from optimum_slim.tasks.task import IGNORED, Example, Metrics, Task

MASKED = 0.15  # share of tokens that are hidden, as in BERT (arXiv:1810.04805, section 3.1)


class FillMask(Task):
    name = "fill-mask"
    architectures = ("ForMaskedLM",)
    ort_class = "ORTModelForMaskedLM"
    answers_tokens = True
    labels_tokens = True
    metric = "masked_accuracy"

    def examples(self, rows: Dataset, limit: int | None = None, labelled: bool = True) -> list[Example]:
        """Hides the same tokens in every run: chosen by a generator seeded with the row's number."""
        examples = super().examples(rows, limit, labelled=False)
        special = set(self.tokenizer.all_special_ids)
        for i, example in enumerate(examples if labelled else []):
            ids = np.array(example["input_ids"])
            usable = np.flatnonzero([token not in special for token in ids])
            count = min(len(usable), max(1, round(MASKED * len(usable))))
            hidden = np.random.default_rng(i).choice(usable, size=count, replace=False)
            labels = np.full(len(ids), IGNORED)
            labels[hidden] = ids[hidden]
            ids[hidden] = self.tokenizer.mask_token_id
            example.update(input_ids=ids.tolist(), labels=labels.tolist())
        return examples

    def outcomes(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        right = outputs.logits.argmax(-1).cpu() == batch["labels"].cpu()
        return [row[asked].tolist() for row, asked in zip(right, batch["labels"].cpu() != IGNORED, strict=True)]

    def metrics(self, outcomes: list[Any], examples: list[Example], original: list[Any] | None) -> Metrics:
        return {"masked_accuracy": float(np.mean([right for row in outcomes for right in row]))}

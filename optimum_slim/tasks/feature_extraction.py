"""One vector for a text: embedders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from optimum_slim.data.texts import label_column, text_columns
from optimum_slim.errors import DataError, ModelError
from optimum_slim.model.checkpoint import read_json
from optimum_slim.tasks.task import Example, Metrics, Task, list_of_texts, rank_correlation

# What sentence-transformers writes, now under `pooling_mode`, before as one switch for each.
_POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
_POOLINGS |= {name: name for name in ("mean", "cls", "max", "lasttoken")}


class FeatureExtraction(Task):
    """Judged by the mean cosine to the original's vectors; where pairs of texts have scores, also by Spearman's
    correlation of the pair's cosine with the score. A pair counts as two texts."""

    name = "feature-extraction"
    architectures = ("Model",)
    ort_class = "ORTModelForFeatureExtraction"
    metric = "cosine"

    @property
    def pooling(self) -> str:
        """mean | cls | max | lasttoken, from the model's sentence-transformers files; mean without them."""
        for path in sorted(self.folder.glob("*_Pooling/config.json")):
            content = read_json(path)
            chosen = [key.removeprefix("pooling_mode_") for key, on in content.items() if on is True]
            chosen = (
                [str(content["pooling_mode"])] if "pooling_mode" in content else [c for c in chosen if c in _POOLINGS]
            )
            name = _POOLINGS.get(chosen[0]) if len(chosen) == 1 else None
            if name is None:
                raise ModelError(f"{path}: this pooling is not supported: {', '.join(chosen)}")
            return name
        return "mean"

    def examples(self, rows: Dataset, limit: int | None = None, labelled: bool = True) -> list[Example]:
        """A pair of columns gives two examples in a row, each with the pair's score as `labels` where there is one."""
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        columns = text_columns(rows, self.data.text)
        name = label_column(rows, self.data.label) if labelled and len(columns) == 2 else None
        texts = [text for row in zip(*(list_of_texts(rows, name) for name in columns), strict=True) for text in row]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.data.max_length)
        examples = [{key: encoded[key][i] for key in encoded} for i in range(len(texts))]
        if name is not None:
            for i, score in enumerate(rows[name]):
                try:
                    examples[2 * i]["labels"] = examples[2 * i + 1]["labels"] = float(score)
                except (TypeError, ValueError) as error:
                    raise DataError(f"data.label: row {i + 1}, column {name} is {score!r}, not a score") from error
        return examples

    def outcomes(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        vectors = pool(outputs.last_hidden_state.float(), batch["attention_mask"], self.pooling)
        return list(torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy())

    def metrics(self, outcomes: list[Any], examples: list[Example], original: list[Any] | None) -> Metrics:
        vectors = np.stack(outcomes)
        reference = vectors if original is None else np.stack(original)
        figures = {"cosine": float((vectors * reference).sum(-1).mean())}
        if "labels" in examples[0]:
            scores = [example["labels"] for example in examples[::2]]
            figures["spearman"] = rank_correlation((vectors[::2] * vectors[1::2]).sum(-1), scores)
        return figures


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """One vector per text: `states` [batch, tokens, hidden], `mask` [batch, tokens] -> [batch, hidden]."""
    real = mask.to(states.device).unsqueeze(-1).bool()
    if how == "mean":
        return (states * real).sum(1) / real.sum(1)
    if how == "max":
        return states.masked_fill(~real, -torch.inf).amax(1)
    at = mask.long().argmax(1) if how == "cls" else mask.shape[1] - 1 - mask.long().flip(1).argmax(1)
    return states[torch.arange(len(states)), at]

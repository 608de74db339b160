"""The next token: decoders, judged by perplexity and by how often they agree with the original."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from optimum_slim.data.texts import one_text_column
from optimum_slim.errors import DataError
from optimum_slim.tasks.task import Example, Metrics, Task, list_of_texts

ROWS = 128  # tokens whose odds are compared at a time


class TextGeneration(Task):
    """Documents are joined, each after a separator token, and cut into blocks of `data.max_length` tokens that do not
    overlap and carry no context; the first token of a block is not predicted."""

    name = "text-generation"
    architectures = ("ForCausalLM", "LMHeadModel")
    ort_class = "ORTModelForCausalLM"
    answers_tokens = True
    metric = "perplexity"
    relative = True
    compares_odds = True

    @property
    def separator(self) -> int:
        """The token between documents: <|endoftext|> where the vocabulary has it, else the end or start token."""
        known = self.tokenizer.get_vocab().get("<|endoftext|>")
        candidates = (known, self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, 0)
        return next(token for token in candidates if token is not None)

    def examples(self, rows: Dataset, limit: int | None = None, labelled: bool = True) -> list[Example]:
        blocks = []
        for block in self._blocks(rows):
            example: Example = {"input_ids": block, "attention_mask": [1] * len(block)}
            blocks.append({**example, "labels": block} if labelled else example)
            if len(blocks) == limit:
                break
        if not blocks:
            raise DataError(f"data: the texts are shorter than one block of {self.data.max_length} tokens")
        return blocks

    def _blocks(self, rows: Dataset) -> Iterator[list[int]]:
        column = one_text_column(rows, self.data.text)
        length, stream, read = self.data.max_length, list[int](), 0
        separator = self.separator
        for part in rows.iter(batch_size=256):
            texts = list_of_texts(part, column, read)
            read += len(texts)
            for ids in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
                stream += [separator, *ids]
            while len(stream) > length:
                yield stream[:length]
                stream = stream[length:]

    def outcomes(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        """For each block its summed negative log likelihood, in nats, and the most likely next tokens."""
        logits, targets = outputs.logits[:, :-1].float(), batch["input_ids"][:, 1:].to(outputs.logits.device)
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").double().sum(1)
        guesses = logits.argmax(-1).cpu().numpy().astype(np.int32)
        return list(zip(nll.tolist(), guesses, strict=True))

    def divergences(self, outputs: Any, original: Any, batch: Mapping[str, Tensor]) -> list[tuple[float, int]]:
        """KL(original || model) of the next token, at every token but a block's last."""
        found = []
        for row, odds, truth in zip(batch["input_ids"], outputs.logits, original.logits, strict=True):
            total = 0.0
            for at in range(0, len(row) - 1, ROWS):  # a large vocabulary's odds fill the memory
                part = slice(at, min(at + ROWS, len(row) - 1))
                found_logs, true_logs = (torch.log_softmax(logits[part].float(), -1) for logits in (odds, truth))
                total += float((true_logs.exp() * (true_logs - found_logs)).double().sum())
            found.append((total, len(row) - 1))
        return found

    def metrics(self, outcomes: list[Any], examples: list[Example], original: list[Any] | None) -> Metrics:
        tokens = sum(len(guesses) for _, guesses in outcomes)
        mean = sum(nll for nll, _ in outcomes) / tokens
        figures = {"perplexity": math.exp(mean) if mean < 700 else math.inf}
        if original is not None:
            same = [np.mean(a == b) for (_, a), (_, b) in zip(outcomes, original, strict=True)]
            figures["next_token_agreement"] = float(np.mean(same))
        return figures

"""Which texts meet in a batch: texts of like length, as most of a random batch of short texts would be padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

POOL = 50  # batches' worth of texts that are sorted by length at a time


@dataclass(frozen=True)
class TrainingData:
    """Tokenized texts to train on, and how they become a batch."""

    examples: Sequence[dict[str, Any]]
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]
    extra: Sequence[dict[str, Any]] = ()  # of texts without labels: for a teacher to answer


class LikeLengths(Sampler[int]):
    """Texts in random pools, each sorted by length and cut into batches, the batches in random order.

    transformers' own grouping keeps the batches of a pool in order of length, so that training sees the same lengths
    for many steps on end.

    Every batch is full: where texts do not come out even, some are seen twice in an epoch. So a batch can be shared
    equally by several processes, and its loss is the same as in one.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size) * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate: another order in each epoch, the same again after a resume."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = list(islice(cycle(torch.randperm(len(self.lengths), generator=generator).tolist()), len(self)))
        size = POOL * self.batch_size
        pools = [sorted(order[at : at + size], key=self.lengths.__getitem__) for at in range(0, len(order), size)]
        ordered = [index for pool in pools for index in pool]
        batches = [ordered[at : at + self.batch_size] for at in range(0, len(ordered), self.batch_size)]
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[place]

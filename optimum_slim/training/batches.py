"""Which texts meet in a batch: texts of like length, as most of a random batch of short texts would be padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

POOL = 50  # batches' worth of texts that are sorted by length at a time


class LikeLengths(Sampler[int]):
    """Texts in random pools, each sorted by length and cut into batches, the batches in random order.

    transformers' own grouping keeps the batches of a pool in order of length, so that training sees the same lengths
    for many steps on end.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate: another order in each epoch, the same again after a resume."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = POOL * self.batch_size
        pools = [sorted(order[at : at + size], key=self.lengths.__getitem__) for at in range(0, len(order), size)]
        ordered = [index for pool in pools for index in pool]
        batches = [ordered[at : at + self.batch_size] for at in range(0, len(ordered), self.batch_size)]
        # A batch that is not full must stay the last, as the loader counts batches by position.
        rest = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[place]
        for batch in rest:
            yield from batch

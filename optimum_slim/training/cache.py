"""A teacher's logits on disk: it is asked about each text once, then it neither runs nor is loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.errors import OutputError
from optimum_slim.files import wholly
from optimum_slim.model.vocabulary import teacher_tokens
from optimum_slim.progress import progress
from optimum_slim.tasks import task_named
from optimum_slim.tasks.task import without_labels
from optimum_slim.training.batches import TrainingData
from optimum_slim.training.losses import TopLogits
from optimum_slim.training.teacher import Teacher

FORMAT = 1  # of what stands in a shard
SHARD_BYTES = 64 * 2**20  # held at a time while the cache is filled, and lost at most when that is stopped
LOWEST = -6e4  # as float16 holds it; as a logit it says "never"


@dataclass(frozen=True)
class TeacherCache:
    """How a teacher's logits are kept: as float16; of those over a vocabulary only the largest, at 4 bytes each (6 of
    more than 65,536 tokens), with the sum of the others, so that a token takes less than 300 bytes. What the others
    teach one by one is lost, which is little at `temperature: 1` and much above it, as that gives them more weight."""

    top: int = 48  # logits kept of each token; more forget less of the unlikely ones

    def mistakes(self) -> Iterator[str]:
        if self.top < 1:
            yield f"top must be at least 1, not {self.top}"


@dataclass(frozen=True)
class TeacherAtRest:
    """A teacher that is loaded only to be asked something new."""

    config: PretrainedConfig
    fingerprint: str  # sha256 of its files
    load: Callable[[], PreTrainedModel]
    folder: Path  # where its answers are kept


class Answers:
    """The logits of a teacher on the examples of a pass, in shards of consecutive examples. They are read where they
    are wanted, and stay on disk.

    Args:
        teacher: it is loaded, and asked, for shards that are not there.
        data: the examples and how they become batches; labels do not matter.
        student: the config of the model that is to learn, whose ids the examples hold.
        settings: how many logits are kept. temperatures: at which the sum of the others is wanted.
        batch_size: examples asked about at a time. device: where.

    Raises:
        OutputError: the disk has no room for them.
    """

    def __init__(
        self,
        teacher: TeacherAtRest,
        data: TrainingData,
        student: PretrainedConfig,
        settings: TeacherCache,
        temperatures: Sequence[float],
        batch_size: int,
        device: torch.device,
    ):
        task = task_named("auto", student)
        found = teacher_tokens(student, teacher.config)
        self.data, self.batch_size, self.temperatures = data, batch_size, sorted(set(temperatures))
        self.per_token = task.labels_tokens or task.answers_tokens
        answered = student.vocab_size if found is None else len(found)
        self.classes = answered if task.answers_tokens else student.num_labels
        self.top = min(settings.top, self.classes) if task.answers_tokens else None
        lengths = [len(example["input_ids"]) if self.per_token else 1 for example in data.examples]
        self.starts = [0, *accumulate(lengths)]
        self.shards = list(_shards(lengths, max(1, SHARD_BYTES // self.row_bytes)))
        self.shard_of = [number for number, rows in enumerate(self.shards) for _ in rows]
        self.folder = teacher.folder / self._key(teacher, found)
        self._open: dict[int, Any] = {}
        self._fill(teacher, student, device)

    @property
    def row_bytes(self) -> int:
        """Bytes of a token, or of a text that is answered as a whole."""
        if self.top is None:
            return 2 * self.classes
        return self.top * (self._ids.itemsize + 2) + 4 * len(self.temperatures)

    def numbered(self) -> TrainingData:
        """The same data, with the answers beside each batch: tensors by name, under `answers`."""

        def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
            batch = self.data.collate([{k: v for k, v in one.items() if k != "number"} for one in examples])
            answers = self._batch([one["number"] for one in examples], batch["attention_mask"])
            return {**batch, "answers": answers}

        numbered = [{**example, "number": number} for number, example in enumerate(self.data.examples)]
        return replace(self.data, examples=numbered, collate=collate)

    def outputs(self, answers: Mapping[str, Tensor]) -> Any:
        """What stands beside a batch, as the outputs of a model: `logits`, a tensor or TopLogits."""
        if self.top is None:
            return SimpleNamespace(logits=answers["logits"])
        rest = dict(zip(self.temperatures, answers["rest"].unbind(-1), strict=True))
        return SimpleNamespace(logits=TopLogits(answers["ids"], answers["values"], rest, self.classes))

    @property
    def _ids(self) -> np.dtype:
        return np.dtype(np.uint16 if self.classes <= 2**16 else np.uint32)

    def _key(self, teacher: TeacherAtRest, found: Tensor | None) -> str:
        """sha256 of all that the answers depend on."""
        told = {
            "format": FORMAT,
            "teacher": teacher.fingerprint,
            "tokens": found if found is None else found.tolist(),
            "top": self.top,
            "temperatures": self.temperatures if self.top else None,
            "batch_size": self.batch_size,
        }
        digest = hashlib.sha256(json.dumps(told).encode())
        for example in self.data.examples:
            digest.update(json.dumps(without_labels(example), sort_keys=True).encode())
        return digest.hexdigest()

    def _file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.safetensors"

    def _fill(self, at_rest: TeacherAtRest, student: PretrainedConfig, device: torch.device) -> None:
        missing = [shard for shard in range(len(self.shards)) if not self._file(shard).exists()]
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = self.row_bytes * sum(self.starts[rows.stop] - self.starts[rows.start]
                                      for rows in (self.shards[shard] for shard in missing))  # fmt: skip
        free = shutil.disk_usage(self.folder).free
        if free < wanted:
            raise OutputError(
                f"the teacher's answers take {wanted / 1e6:,.0f} MB on the disk of {self.folder.resolve()}, and only "
                f"{free / 1e6:,.0f} MB are free; make room, lower teacher_cache.top, or switch teacher_cache off"
            )
        teacher = Teacher(nn.Module.to(at_rest.load(), device), student, device)
        with progress(None, "asking the teacher", total=sum(len(self.shards[shard]) for shard in missing)) as shown:
            for shard in missing:
                parts = self._asked(teacher, self.shards[shard], device, shown.update)
                answers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                wholly(self._file(shard), partial(save_file, answers))

    def _asked(
        self, teacher: Teacher, rows: range, device: torch.device, told: Callable[[int], Any]
    ) -> list[dict[str, np.ndarray]]:
        """What the teacher answers to some examples, in their order; asked in batches of like length."""
        examples, found = self.data.examples, dict[int, dict[str, np.ndarray]]()
        order = sorted(rows, key=lambda row: len(examples[row]["input_ids"]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = self.data.collate([without_labels(examples[row]) for row in chosen])
            inputs = {name: value.to(device) for name, value in batch.items()}
            logits = teacher.answers(inputs).logits.float()
            for at, row in enumerate(chosen):
                real = logits[at][inputs["attention_mask"][at].bool()] if self.per_token else logits[at : at + 1]
                found[row] = self._kept(real)
            told(len(chosen))
        return [found[row] for row in rows]

    def _kept(self, logits: Tensor) -> dict[str, np.ndarray]:
        """What is kept of float32 logits [rows, classes]."""
        if self.top is None:
            return {"logits": logits.clamp(LOWEST, -LOWEST).cpu().numpy().astype(np.float16)}
        shifted = logits - logits.amax(-1, keepdim=True)
        values, ids = shifted.topk(self.top, dim=-1)
        others = shifted.scatter_(-1, ids, -torch.inf)
        rest = [(others / temperature).logsumexp(-1).clamp(min=LOWEST) for temperature in self.temperatures]
        return {
            "ids": ids.cpu().numpy().astype(self._ids),
            "values": values.clamp(min=LOWEST).cpu().numpy().astype(np.float16),
            "rest": torch.stack(rest, dim=-1).cpu().numpy(),
        }

    def _batch(self, numbers: Sequence[int], mask: Tensor) -> dict[str, Tensor]:
        """The answers to some examples as tensors, int64 and float32: [batch, classes], or [batch, tokens, ...] with
        zeros where `mask` [batch, tokens] is zero."""
        parts = [self._read(number) for number in numbers]
        tensors = {}
        for name in parts[0]:
            joined = np.concatenate([part[name] for part in parts])
            values = torch.from_numpy(joined.astype(np.int64 if name == "ids" else np.float32))
            if self.per_token:
                padded = values.new_zeros(*mask.shape, values.shape[-1])
                padded[mask.bool()] = values
                values = padded
            tensors[name] = values
        return tensors

    def _read(self, number: int) -> dict[str, np.ndarray]:
        shard = self.shard_of[number]
        if shard not in self._open:
            self._open[shard] = safe_open(self._file(shard), framework="np")  # mapped into memory, not read
        first = self.starts[self.shards[shard].start]
        part = slice(self.starts[number] - first, self.starts[number + 1] - first)
        return {name: self._open[shard].get_slice(name)[part] for name in self._open[shard].keys()}  # noqa: SIM118


def _shards(lengths: Sequence[int], most: int) -> Iterator[range]:
    """Ranges of consecutive examples whose lengths add up to at most `most`; one at least in each."""
    start = total = 0
    for number, length in enumerate(lengths):
        if number > start and total + length > most:
            yield range(start, number)
            start, total = number, 0
        total += length
    yield range(start, len(lengths))

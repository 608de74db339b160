"""The blocks of a model one after the other, each changed and done with before the next: what a step that is broken
off has finished of a streamed model is found again."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel

from optimum_slim.errors import ModelError
from optimum_slim.files import wholly
from optimum_slim.model.anatomy import Block, blocks_of
from optimum_slim.model.grids import grids_within, put_grids, read_grids, settings_of, write_grids
from optimum_slim.model.shape import BlockShape, shape_of
from optimum_slim.model.shards import stored_as, write_shard
from optimum_slim.model.streamed import disk_of, held, parts_of
from optimum_slim.model.surgery import reshape_block
from optimum_slim.progress import progress

_STEP = "slim_step"  # attribute of a model while a step changes it
_FINISHED = "blocks.json"


class Step:
    """What one step has done to which blocks."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.passes = 0
        record = folder / _FINISHED if folder is not None else None
        self.earlier: list[dict[str, Any]] = json.loads(record.read_text()) if record and record.exists() else []
        self.rows: list[dict[str, Any]] = []


class Pass:
    """One way through the blocks, on which they are changed. A step may have several, which are numbered."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.step = model, _step_of(model)
        self.number, self.step.passes = self.step.passes, self.step.passes + 1

    def has_finished(self, block: Block) -> bool:
        """Whether an earlier run has finished this block."""
        return self._earlier(block) is not None

    def take_up(self, block: Block) -> None:
        """Gives a block, in place, the weights, sizes and grids that an earlier run finished it with.

        Args:
            block: of a streamed model, not held.
        """
        row = self._earlier(block)
        if row is None:
            raise ModelError(f"block {block.index} has not been finished by an earlier run")
        reshape_block(self.model, block.index, BlockShape(**row["shape"]))
        if row["grids"]:
            put_grids(self.model, read_grids(self._file(block, "grids"), row["grids"]))
        self._moved(block)
        self.step.rows.append(row)

    def finish(self, block: Block, seconds: float, error: float | None) -> None:
        """Notes what was done to a block, and of a streamed model writes its weights and grids.

        Args:
            block: held. seconds: that it took. error: of what it computes, as a share; None where it was not asked.
        """
        row: dict[str, Any] = {"block": block.index, "seconds": round(seconds, 2), "error": error}
        disk = disk_of(self.model)
        if disk is not None:
            grids = grids_within(self.model, block.name)
            if grids:
                wholly(self._file(block, "grids"), lambda to: write_grids(to, grids))
            values = {name: self.model.get_parameter(name).data for name in parts_of(self.model)[block.name]}
            weights = self._file(block, "weights")
            write_shard(weights, {name: stored_as(value, disk.dtype(name)) for name, value in values.items()})
            sizes = vars(shape_of(self.model).blocks[block.index])
            row |= {"pass": self.number, "shape": sizes, "grids": settings_of(grids)}
            rows = json.dumps([*self.step.rows, row], indent=1)
            wholly(weights.with_name(_FINISHED), lambda to: to.write_text(rows, encoding="utf-8"))
            self._moved(block)
        self.step.rows.append(row)

    def _earlier(self, block: Block) -> dict[str, Any] | None:
        key = (self.number, block.index)
        return next((row for row in self.step.earlier if (row["pass"], row["block"]) == key), None)

    def _file(self, block: Block, kind: str) -> Path:
        if self.step.folder is None:
            raise ModelError("a streamed model keeps its changes only in a step; call begin_step first")
        return self.step.folder / f"pass-{self.number}-block-{block.index:03d}-{kind}.safetensors"

    def _moved(self, block: Block) -> None:
        disk = disk_of(self.model)
        if disk is not None:
            path = self._file(block, "weights")
            disk.written.add(path)
            disk.places |= {name: (path, name) for name in parts_of(self.model)[block.name]}


def begin_step(model: PreTrainedModel, folder: Path | None = None) -> None:
    """Begins a step, in place: a streamed model keeps the blocks that it finishes in `folder`, and finds there those
    that the same step finished before it was broken off."""
    setattr(model, _STEP, Step(folder))


def block_rows(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Rows {block, seconds, error} of what the step did to each block so far."""
    keys = ("block", "seconds", "error")
    return [{key: row[key] for key in keys} for row in _step_of(model).rows]


def tell(bar: tqdm, block: Block, seconds: float, error: float | None) -> None:
    """Adds to a line of progress what was last done."""
    told = f"block {block.index} took {seconds:.0f} s"
    bar.set_postfix_str(told if error is None else f"{told}, error {error:.3g}", refresh=False)


def blocks_to_change(model: PreTrainedModel, indices: Collection[int] | None = None) -> Iterator[Block]:
    """The blocks, first to last, held each while the caller changes it; default: all. Those that an earlier run has
    finished are not told again."""
    turn = Pass(model)
    chosen = [block for block in blocks_of(model) if indices is None or block.index in indices]
    for block in (bar := progress(chosen, "block by block")):
        if turn.has_finished(block):
            turn.take_up(block)
            continue
        begun = time.monotonic()
        with held(model, block.name):
            yield block
            turn.finish(block, seconds := time.monotonic() - begun, None)
        tell(bar, block, seconds, None)


def _step_of(model: PreTrainedModel) -> Step:
    if not hasattr(model, _STEP):
        begin_step(model)
    return getattr(model, _STEP)

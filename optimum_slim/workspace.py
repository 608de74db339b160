"""The folder `<output>.partial/` that a run works in: locked, resumable, and renamed to the output at the end."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_slim import processes
from optimum_slim.deploy.machine import environment
from optimum_slim.errors import OutputError
from optimum_slim.model.checkpoint import save_model
from optimum_slim.model.streamed import disk_of, put_on_disk
from optimum_slim.planning import Plan, fingerprint
from optimum_slim.report.report import Report
from optimum_slim.sources import local_path

NOTHING_DONE = {"lock", "run.json", "run.unfinished", "mark"}


class Workspace:
    """Holds one checkpoint, of the last finished step, with the report so far. The same command goes on from there.

    Raises:
        OutputError: the output exists, another run holds the workspace, or it was begun by another run.
    """

    def __init__(self, output: Path, plan: Plan, overwrite: bool = False, restart: bool = False):
        self.output, self.overwrite, self.restart = output, overwrite, restart
        _refuse_to_replace(output.resolve(), plan)
        self.folder = output.with_name(f"{output.name}.partial")
        self.identity = identity(plan)
        self._lock = FileLock(f"{self.folder}/lock")
        self.disk_bytes = plan.disk_bytes
        _refuse_what_exists(output, overwrite)

    def __enter__(self) -> Workspace:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(f"another run is writing {self.output}") from error
        except OSError as error:
            raise OutputError(f"the output {self.output} cannot be written: {error}") from error
        try:
            self._take_up()
            self._ask_for_space()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and self._is_fresh():
            shutil.rmtree(self.folder, ignore_errors=True)  # while no other run can have begun in it
        self._lock.release()
        if error is not None and is_full_disk(error):
            raise OutputError(
                f"the disk of {self.folder.resolve()} is full; make room, and the same command goes on from the last "
                "finished step"
            ) from error

    def done(self) -> tuple[int, Path] | None:
        """How many steps are finished, and the checkpoint after them; none at the start."""
        finished = sorted(self.folder.glob("step-[0-9]*[0-9]"))
        return (int(finished[-1].name.split("-")[1]), finished[-1]) if finished else None

    def checkpoint(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
        """Saves the model after a step, whole or not at all, and drops the one before."""
        count = len(report.steps)
        target = self.folder / f"step-{count:02d}"
        unfinished = self.scratch(f"{target.name}.unfinished")
        save_model(model, unfinished, tokenizer)
        report.write(unfinished)
        unfinished.rename(target)
        if disk_of(model) is not None:
            put_on_disk(model, target)
        for old in self.folder.glob("step-[0-9]*"):
            if old != target:
                shutil.rmtree(old)

    def blocks(self, count: int) -> Path:
        """Where a streamed step, the last of `count`, keeps the blocks that it has finished."""
        return self.kept(f"step-{count:02d}.blocks")

    def scratch(self, name: str) -> Path:
        """An empty folder in the workspace."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def kept(self, name: str) -> Path:
        """A folder in the workspace that a resumed run finds again."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def mark(self) -> list[str]:
        """The folder and a new sign in it, by which another process knows whether it sees the same folder."""
        sign = uuid.uuid4().hex
        (self.folder / "mark").write_text(sign)
        return [str(self.folder.resolve()), sign]

    def share(self, names: Sequence[str]) -> None:
        """Lets other processes have folders of the workspace; each calls the same of its `Visit`."""
        for name in names:
            processes.copied(self.folder / name, self.folder / name)

    def finish(self, folder: Path) -> None:
        """Puts the finished folder in the output's place and removes the workspace."""
        if self.output.exists():
            shutil.rmtree(self.output)
        folder.rename(self.output)
        shutil.rmtree(self.folder)

    def _is_fresh(self) -> bool:
        """Whether no work would be lost."""
        return {path.name for path in self.folder.glob("*")} <= NOTHING_DONE

    def _ask_for_space(self) -> None:
        there = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        free, wanted = shutil.disk_usage(self.folder).free, self.disk_bytes - there
        if free < wanted:
            raise OutputError(
                f"the run needs about {wanted / 1e6:,.0f} MB on the disk of {self.folder.resolve()}, and only "
                f"{free / 1e6:,.0f} MB are free; make room, or choose an output on another disk"
            )

    def _take_up(self) -> None:
        record = self.folder / "run.json"
        if self.restart:
            for path in self.folder.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not self._is_fresh():
            try:
                before = json.loads(record.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise OutputError(f"{record} is damaged; pass --restart to begin anew") from error
            changed = [key for key, value in self.identity.items() if before.get(key) != value]
            if changed:
                raise OutputError(
                    f"{self.folder} was begun with a different {' and '.join(changed)}; "
                    "pass --restart to begin anew, or choose another output"
                )
        unfinished = record.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.identity, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(record)


class Visit:
    """The workspace of the first process in the eyes of another: the same folder where it is at hand, else, on another
    machine, a temporary one with copies of what is shared."""

    def __init__(self, place: str, sign: str):
        self.first, mark = Path(place), Path(place) / "mark"
        self.same = mark.is_file() and mark.read_text() == sign

    def __enter__(self) -> Visit:
        self._copy = None if self.same else tempfile.TemporaryDirectory()
        self.folder = Path(self._copy.name) if self._copy else self.first
        return self

    def __exit__(self, *_: object) -> None:
        if self._copy:
            self._copy.cleanup()

    def share(self, names: Sequence[str]) -> None:
        for name in names:
            processes.copied(self.first / name, self.folder / name)

    def kept(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def is_full_disk(error: BaseException) -> bool:
    """Whether it comes from a full disk; libraries in Rust and C++ tell that in words only."""
    chain: BaseException | None = error
    while chain is not None:
        if getattr(chain, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _refuse_what_exists(output: Path, overwrite: bool) -> None:
    """`--overwrite` replaces what an earlier run wrote, and nothing else."""
    if not output.exists():
        return
    if not output.is_dir():
        raise OutputError(f"the output {output} is a file; a folder is written")
    if not overwrite:
        raise OutputError(f"the output {output} exists; choose another, or pass --overwrite to replace it")
    if any(output.iterdir()) and not (output / "slim_report.json").is_file():
        raise OutputError(f"the output {output} holds files that no run wrote; choose another, or remove it yourself")


def _refuse_to_replace(output: Path, plan: Plan) -> None:
    """What a run reads, or stands in, is never replaced by what it writes, whatever the options."""
    sources = [plan.folder, plan.teacher_folder, *plan.models, Path.cwd()]
    named = [plan.recipe.data.source, *plan.recipe.data.extra]
    sources += [texts for name in named if name is not None and (texts := local_path(name, "data")) is not None]
    for source in sources:
        if source.resolve().is_relative_to(output):
            raise OutputError(f"the output {output} would replace {source}; choose another")


def identity(plan: Plan) -> dict[str, Any]:
    """What must be equal for a run to be the same run."""
    # A run that ended because a precision cost too much, or a budget asked too much, goes on with another one.
    recipe = {key: value for key, value in plan.recipe.complete().items() if key not in ("deploy", "budget")}
    return {
        "recipe": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        "model": fingerprint(plan.folder),
        "teacher": fingerprint(plan.teacher_folder),
        "augment.masked_lm": [fingerprint(folder) for folder in plan.models] or None,
        "data": plan.texts.fingerprint if plan.texts is not None else None,
        "data.extra": plan.extra.fingerprint if plan.extra is not None else None,
        "number of processes": f"{processes.count()} with FSDP" if processes.sharded() else processes.count(),
        "versions": environment()["versions"],
    }

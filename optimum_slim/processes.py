"""Several processes that run one recipe: the first leads, the others train with it. Alone, a process does nothing here.

accelerate starts the processes and chooses how gradients travel (gloo between CPUs, nccl between GPUs). What they tell
each other besides goes by gloo, as JSON, and may be waited for as long as a step takes.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from optimum_slim.errors import ProcessError, SlimError

PATIENCE = timedelta(days=30)  # that others wait for the first: an end of its process is noticed at once
CHUNK = 64 * 2**20  # bytes of a file sent at a time
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # set by torchrun and by MPI
_BROKEN = ("gloo", "nccl", "connection")  # words of torch's errors when another process is gone

T = TypeVar("T")

_told_by: Any = None  # the group that messages go through


def launched() -> bool:
    """Whether this process was started as one of several."""
    return any(int(os.environ.get(name, 1)) > 1 for name in _COUNTS)


def join(cpu: bool) -> None:
    """Meets the other processes, if this one was started as one of several.

    Args:
        cpu: gradients travel between CPUs even where there are GPUs.
    """
    global _told_by
    if not launched() or _told_by is not None:
        return
    from accelerate import PartialState

    cpu = cpu or not torch.cuda.is_available()
    if cpu:  # by itself accelerate says cpu:0, to which the Trainer cannot load a checkpoint
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # or transformers loads no weights but in the first process
    PartialState(cpu=cpu)
    _told_by = dist.new_group(backend="gloo", timeout=PATIENCE)


def leave() -> None:
    """Parts from the other processes when all is done."""
    global _told_by
    if _told_by is not None:
        _told_by = None
        dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """Which of the processes this is; the first is 0."""
    return dist.get_rank() if count() > 1 else 0


def sharded() -> bool:
    """Whether each process is to hold a part of each weight only, by `accelerate launch --use_fsdp`."""
    return count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def mean(value: Tensor) -> Tensor:
    """The mean over processes, without a gradient; alone the value as it is. All processes must ask for it."""
    if count() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / count()


def told(value: Any = None) -> Any:
    """What the first process says, in all of them: a value that JSON can hold."""
    return _said(value, 0)


def gathered(value: Any) -> list[Any]:
    """What each process says, in all of them."""
    return [_said(value, source) for source in range(count())]


def agreed(make: Callable[[], T]) -> T:
    """What each process makes by itself, if all can; else all end, and the first tells why.

    Raises:
        SlimError: in the first process.
    """
    made, mistake = None, None
    try:
        made = make()
    except SlimError as error:
        mistake = error
    if count() > 1:
        said = gathered(mistake and [str(mistake), mistake.exit_code, socket.gethostname()])
        failed = [at for at, one in enumerate(said) if one]
        if failed and index() > 0:
            _end_after_the_first(said[failed[0]][1])
        if failed and mistake is None:
            message, code, host = said[failed[0]]
            mistake = SlimError(f"process {failed[0]} on {host}: {message}")
            mistake.exit_code = code
    if mistake is not None:
        raise mistake
    return made  # type: ignore[return-value]


@contextmanager
def first_of_machine_first() -> Iterator[None]:
    """What is done inside one process of each machine does before the others, which wait as long as it takes: they read
    what it wrote. All must come."""
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0  # accelerate sets it, however it was launched
    if not first:
        gathered(None)
    yield
    if first:
        gathered(None)


class Lead:
    """What the first process calls the others with."""

    busy = False  # the others are at work, not waiting for a message

    @contextmanager
    def calling(self, work: dict[str, Any]) -> Iterator[None]:
        """Has the others do their part of what is done inside; `work` tells them which."""
        told(work)
        self.busy = True
        yield
        self.busy = False


@contextmanager
def leading() -> Iterator[Lead]:
    """For the first process, around all it does. If it fails, the others end with it.

    Raises:
        ProcessError: another process is gone.
    """
    lead = Lead()
    try:
        yield lead
    except BaseException as error:
        if count() > 1 and is_broken(error):
            raise ProcessError("another process of this run has ended") from error
        if count() > 1 and not lead.busy:
            with suppress(RuntimeError):
                told({"failed": getattr(error, "exit_code", 1)})
        raise


def follow(work: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """For the other processes: does `work` with each message of the first, until one says `done`, and returns that."""
    try:
        while True:
            message = told()
            if "done" in message:
                return message["done"]
            if "failed" in message:
                _end_after_the_first(message["failed"])
            work(message)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except RuntimeError as error:
        if is_broken(error):
            raise SystemExit(1) from None
        raise


def copied(folder: Path, mine: Path, names: Sequence[str] = ("*",)) -> None:
    """Copies files of a folder of the first process to those that lack it; all must call it.

    Args:
        folder: where the first process has it. mine: where this process wants it; `folder` where it is there already.
        names: patterns of files and folders in it.
    """
    if not any(gathered(mine != folder)):
        return
    tops = sorted({path for name in names for path in folder.glob(name)}) if index() == 0 else []
    files = [path for top in tops for path in ([top] if top.is_file() else sorted(top.rglob("*"))) if path.is_file()]
    for name, size in told([[str(path.relative_to(folder)), path.stat().st_size] for path in files]):
        _send_file(folder / name, mine / name if mine != folder else Path(os.devnull), size)


def is_broken(error: BaseException) -> bool:
    """Whether torch says that another process is gone."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _BROKEN)


def _send_file(source: Path, target: Path, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") if index() == 0 else target.open("wb") as file:
        for start in range(0, size, CHUNK):
            length = min(CHUNK, size - start)
            sent = bytearray(file.read(length)) if index() == 0 else bytearray(length)
            part = torch.frombuffer(sent, dtype=torch.uint8)
            dist.broadcast(part, 0, group=_told_by)
            if index() > 0:
                file.write(part.numpy().data)


def _said(value: Any, source: int) -> Any:
    if count() == 1:
        return value
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    length = torch.tensor(len(text))
    dist.broadcast(length, source, group=_told_by)
    if index() != source:
        text = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(text, source, group=_told_by)
    return json.loads(bytes(text.numpy()))


def _end_after_the_first(code: int) -> NoReturn:
    """Whoever started the processes ends all when one ends: the first must have told its error by then."""
    with suppress(RuntimeError):
        told()
    raise SystemExit(code)

"""Progress of long work: a bar with the time left on a terminal, a plain line now and then elsewhere; and quiet for
libraries that log what nobody asked about."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from tqdm import tqdm
from tqdm.auto import tqdm as bar

LINES_APART = 15  # seconds; what is over sooner tells nothing

_silent = False


def silence(silent: bool = True) -> None:
    """Tells nothing from now on, or speaks again."""
    global _silent
    _silent = silent


@contextlib.contextmanager
def logs_silenced() -> Iterator[None]:
    """Inside, no library logs anything below an error, and one that sets up the logs of the whole process, as some do
    when they are imported, does so in vain."""
    root = logging.root
    previous, handlers, level = root.manager.disable, list(root.handlers), root.level
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
        root.handlers[:] = handlers
        root.setLevel(level)


def progress(work: Iterable[Any] | None, what: str, total: int | None = None, done: int = 0) -> tqdm:
    """Goes through `work` and shows how far it is; without `work` call `update()` and `close()`.

    Args:
        work: what to go through.
        what: a word or two that say what is being done.
        total: of how many; default: the length of `work`.
        done: so many were finished by an earlier run: they count, but not for the time that the rest will take.
    """
    common: dict[str, Any] = {"desc": what, "total": total, "initial": done, "leave": False}
    if _silent:
        return bar(work, disable=True, **common)
    if sys.stderr.isatty():
        return bar(work, dynamic_ncols=True, **common)
    told = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left{postfix}"
    pace = {"mininterval": LINES_APART, "maxinterval": LINES_APART, "delay": LINES_APART, "miniters": 1}
    return _Lines(work, bar_format=told, **pace, **common)


class _Lines(tqdm):
    """tqdm that writes lines instead of going back to the start of one."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        def show(text: str) -> None:
            if text.strip():
                print(text, file=file, flush=True)

        return show

    def moveto(self, n: int) -> None:
        """A bar within another has no place of its own to go to."""

    def close(self) -> None:
        if self in self._instances:  # the end of a line is told already
            self._decr_instances(self)
        self.disable = True

"""Long work tells how far it is: a bar on a terminal, lines elsewhere, nothing when silenced."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import pytest

from optimum_slim import progress as module
from optimum_slim.progress import logs_silenced, progress, silence


def slowly(count: int):
    for number in range(count):
        time.sleep(0.02)
        yield number


def test_without_a_terminal_lines_are_told_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(module, "LINES_APART", 0.03)
    assert list(progress(slowly(6), "counting", total=6)) == list(range(6))
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 4
    assert all(line.startswith("counting: ") and line.endswith(" left") for line in lines)


def test_work_within_work_tells_lines_too(monkeypatch, capsys):
    monkeypatch.setattr(module, "LINES_APART", 0.03)
    for _ in progress(range(3), "outer"):
        assert list(progress(slowly(4), "inner", total=4)) == list(range(4))
    told = capsys.readouterr().err
    assert {line.partition(":")[0] for line in told.splitlines()} == {"outer", "inner"}
    assert "\x1b" not in told


def test_what_is_over_soon_tells_nothing(capsys):
    assert len(list(progress(range(1000), "counting"))) == 1000
    assert capsys.readouterr().err == ""


def test_work_of_an_earlier_run_counts_but_not_for_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(module, "LINES_APART", 0)
    shown = progress(None, "training", total=1002, done=1000)
    time.sleep(1.1)
    shown.update()
    shown.close()
    assert "training: 1001 of 1002, 00:01 gone, 00:01 left" in capsys.readouterr().err.splitlines()


def test_on_a_terminal_a_bar_moves_and_goes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(progress(range(3), "counting"))
    told = capsys.readouterr().err
    assert "counting" in told
    assert "\n" not in told
    assert told.endswith("\r")


@pytest.mark.parametrize("terminal", [True, False])
def test_silence_tells_nothing(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(module, "LINES_APART", 0)
    silence()
    try:
        assert list(progress(slowly(3), "counting", total=3)) == [0, 1, 2]
    finally:
        silence(False)
    assert capsys.readouterr().err == ""


def test_a_library_sets_up_no_logs_for_the_whole_process(capsys):
    before = list(logging.root.handlers), logging.root.level, logging.root.manager.disable
    with logs_silenced():
        logging.basicConfig(level=logging.INFO, force=True)
        logging.getLogger("library").warning("so many nodes")
    assert (list(logging.root.handlers), logging.root.level, logging.root.manager.disable) == before
    assert capsys.readouterr().err == ""


def test_rounding_weights_leaves_the_logs_alone():
    program = (
        "import logging, numpy; from optimum_slim.deploy.blocks import _rounded;"
        "_rounded(numpy.ones((32, 8), dtype=numpy.float32), 8); print(logging.root.handlers, logging.root.level)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"[] {logging.WARNING}\n"

"""The command line inside this process, which has imported everything already."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from optimum.commands.base import RootOptimumCLICommand

from optimum_slim.commands.slim import SlimCommand
from optimum_slim.commands.verb import Verb
from optimum_slim.progress import silence


def parsed(*arguments: str | Path) -> Verb:
    """The verb that a command line asks for, with its arguments."""
    root = RootOptimumCLICommand("optimum-cli")
    SlimCommand(root.subparsers)
    args = root.parser.parse_args(["slim", *map(str, arguments)])
    return args.func(args)


@pytest.fixture
def here(capsys):
    """Runs `optimum-cli slim` with arguments and expects its exit code."""

    def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess:
        left = 0
        try:
            parsed(*arguments).run()
        except SystemExit as end:
            left = end.code
        told = capsys.readouterr()
        assert left == code, told.err
        return subprocess.CompletedProcess(arguments, left, told.out, told.err)

    yield run
    silence(False)

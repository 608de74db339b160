"""What the verbs share: how a recipe is given on the command line, and how errors are told."""

from __future__ import annotations

import _thread
import contextlib
import json
import logging
import os
import sys
import threading
import traceback
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand

if TYPE_CHECKING:
    from optimum_slim.recipe import Recipe


class Verb(BaseOptimumCLICommand):
    """Runs `work()`; what the user did wrong becomes one message and an exit code, without a traceback."""

    EXAMPLES = ""
    STOPPED = "stopped"  # told when the user presses Ctrl-C

    @classmethod
    def parse_args(cls, parser: ArgumentParser) -> None:
        parser.formatter_class = RawDescriptionHelpFormatter
        parser.epilog = cls.EXAMPLES
        parser.add_argument("--quiet", action="store_true", help="no progress: results and errors only")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error, and all warnings")
        cls.arguments(parser)

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        raise NotImplementedError

    def run(self) -> None:
        if not self.args.debug:
            _quiet_libraries()
        if self.args.quiet:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        from optimum_slim.errors import ProcessError, SlimError
        from optimum_slim.progress import silence

        silence(self.args.quiet)

        try:
            with _ctrl_c_is_heard():
                self.work()
        except SlimError as error:
            if self.args.debug:
                traceback.print_exc()
            elif os.environ.get("RANK", "0") == "0" and not isinstance(error, ProcessError):  # of several one tells
                print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print(self.STOPPED, file=sys.stderr)
            sys.exit(130)

    def work(self) -> None:
        raise NotImplementedError

    def recipe(self) -> Recipe:
        """The recipe that the command line names, with its overrides."""
        from optimum_slim.errors import RecipeError
        from optimum_slim.recipe import load_recipe

        overrides = {}
        for pair in self.args.set:
            key, equals, value = pair.partition("=")
            if not equals or not key:
                raise RecipeError([f"--set {pair}: write it as key=value, e.g. steps.0.ratio=0.5"], "the command line")
            overrides[key] = value
        for key, given in (("model", self.args.model), ("data.source", self.args.data)):
            if given is not None:
                overrides[key] = json.dumps(given)
        return load_recipe(self.args.recipe, overrides)


def add_recipe_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe (`optimum-cli slim list`)")
    parser.add_argument("--model", metavar="M", help="folder or Hub id of the model, instead of the recipe's")
    parser.add_argument("--data", metavar="D", help="folder, file or Hub id of the texts, instead of the recipe's")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override one key, e.g. steps.0.ratio=0.5"
    )


@contextlib.contextmanager
def _ctrl_c_is_heard() -> Iterator[None]:
    """Inside, a Ctrl-C that Python gets during `__del__` or the callback of a weak reference, of which training has
    many, stops the work all the same; Python itself prints it as ignored and goes on."""
    tell, again = sys.unraisablehook, []

    def heard(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            # At once it would be raised in here, and ignored again.
            again.append(threading.Timer(0.05, _thread.interrupt_main))
            again[-1].start()
        else:
            tell(ignored)

    sys.unraisablehook = heard
    try:
        yield
    finally:
        sys.unraisablehook = tell
        for timer in again:
            timer.cancel()


def _quiet_libraries() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.getLogger("optimum").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

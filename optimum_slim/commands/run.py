"""`optimum-cli slim run`: slim a model by a recipe."""

from __future__ import annotations

import logging
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import TYPE_CHECKING

from optimum_slim.commands.verb import Verb, add_recipe_arguments

if TYPE_CHECKING:
    from optimum_slim.report.report import Report

CONTINUED = "the same command goes on from where it was: from the last finished step, or within training"


class RunCommand(Verb):
    EXAMPLES = """examples:
  optimum-cli slim run encoder-fast --model ./my-classifier --data ./my-texts -o my-classifier-slim
  optimum-cli slim run decoder-int8 --model ./my-llm --data ./my-texts -o my-llm-slim
  optimum-cli slim run my.yaml --set steps.0.ratio=0.5 --set deploy.precision=fp32 -o out
  optimum-cli slim run encoder-fast --model ./my-classifier --data ./my-texts -o my-classifier-slim --processes 2
"""

    STOPPED = f"stopped; {CONTINUED}"

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        add_recipe_arguments(parser)
        parser.add_argument("-o", "--output", required=True, help="the folder to write")
        parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
        parser.add_argument(
            "--processes", metavar="N", type=int, default=1, help="train in N processes, on GPUs one for each"
        )
        parser.add_argument("--restart", action="store_true", help="forget an interrupted run instead of going on")

    def work(self) -> None:
        recipe, arguments = self.recipe(), self.args
        if arguments.processes != 1 and "WORLD_SIZE" not in os.environ:
            sys.exit(started(arguments.processes, recipe.threads))
        from optimum_slim import processes
        from optimum_slim.flow import slim

        told = {} if arguments.quiet else {"say": _say}
        report = slim(recipe, arguments.output, overwrite=arguments.overwrite, restart=arguments.restart, **told)
        if processes.index() == 0:
            print("\n".join(summary(arguments.output, report)))
        processes.leave()


def started(count: int, threads: int) -> int:
    """Runs this command line in so many processes of this machine, by accelerate's launcher; returns the exit code.

    Raises:
        RecipeError: there is no such number of processes.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from optimum_slim.errors import RecipeError

    if count < 1:
        raise RecipeError([f"--processes must be at least 1, not {count}"], "the command line")
    sizes = {"num_processes": count, "num_machines": 1, "num_cpu_threads_per_process": threads, "main_process_port": 0}
    settings = sizes | {"mixed_precision": "no", "dynamo_backend": "no"}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = ["--multi_gpu", *options, "-m", "optimum.commands.optimum_cli", *sys.argv[1:]]
    logging.disable()  # the first process tells what goes wrong
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        launch_command(launch_command_parser().parse_args(command))
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        code, message = ended({rank: failure.exitcode for rank, failure in failed.failures.items()})
        if message:
            print(f"error: {message}; {CONTINUED}", file=sys.stderr)
        return code
    return 0


def ended(codes: Mapping[int, int]) -> tuple[int, str]:
    """The exit code of a run whose processes ended with these, by their number, and what is still to be told of it.

    Below zero stands a signal. When one has ended, the launcher ends the others with SIGTERM, and with SIGKILL those
    that do not heed it.
    """
    if max(codes.values(), default=0) > 1:  # a mistake that was told; a process that lost another ends with 1
        return max(codes.values()), ""
    killed = {rank: -code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    if not killed and not any(code > 0 for code in codes.values()):
        killed = {rank: -code for rank, code in codes.items() if code}
    for rank, number in killed.items():
        return 1, f"process {rank} was ended by {signal.Signals(number).name}, for lack of memory perhaps"
    return max(codes.values(), default=0), ""


def _say(text: str) -> None:
    print(text, flush=True)


def summary(output: str, report: Report) -> list[str]:
    """The figures that matter, a line each: before, Optimum's int8, after, and how a budget was held."""
    from optimum_slim.report.figures import budget_rows

    final, lines = report.final, [f"{output}: {report.final['precision']}"]
    for name, row in (("original", report.original), ("optimum int8", report.baseline_int8), ("slim", final)):
        if not row:
            continue
        quality = ", ".join(f"{metric} {value:.4g}" for metric, value in row["quality"].items())
        p50 = f"p50 {row['latency_ms']['p50']:8.2f} ms" if "latency_ms" in row else "has no room here"
        lines.append(f"  {name:<13} {row['file_bytes'] / 1e6:8.1f} MB  {p50:<15}  {quality}")
    for row in final["latency"] if "speedup" in final else ():
        fp32, int8 = row["speedup"]["vs_fp32"], row["speedup"]["vs_optimum_int8"]
        where = f"{row['phase']}, batch {row['batch']}, {row['tokens']} tokens, {row['threads']} threads"
        lines.append(f"  {where}: {fp32['median']:.2f}x over fp32, {int8['median']:.2f}x over Optimum's int8")
    lines += [f"  {row['end']} {row['wanted']}: {row['reached']}" for row in budget_rows(report)]
    for key, what in (("high", "left in fp32"), ("denser", "as before their zeros")):
        if report.budget.get(key):
            lines.append(f"  {what}: {', '.join(report.budget[key])}")
    return lines

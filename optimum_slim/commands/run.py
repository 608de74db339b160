"""`optimum-cli slim run`: slim a model by a recipe."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import TYPE_CHECKING

from optimum_slim.commands.verb import Verb, add_recipe_arguments

if TYPE_CHECKING:
    from optimum_slim.report.report import Report


class RunCommand(Verb):
    EXAMPLES = """examples:
  optimum-cli slim run encoder-fast --model ./my-classifier --data ./my-texts -o my-classifier-slim
  optimum-cli slim run decoder-int8 --model ./my-llm --data ./my-texts -o my-llm-slim
  optimum-cli slim run my.yaml --set steps.0.ratio=0.5 --set deploy.precision=fp32 -o out
"""

    STOPPED = "stopped; the same command goes on from where it was: from the last finished step, or within training"

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        add_recipe_arguments(parser)
        parser.add_argument("-o", "--output", required=True, help="the folder to write")
        parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
        parser.add_argument("--restart", action="store_true", help="forget an interrupted run instead of going on")

    def work(self) -> None:
        from optimum_slim.flow import slim

        recipe, arguments = self.recipe(), self.args
        told = {} if arguments.quiet else {"say": _say}
        report = slim(recipe, arguments.output, overwrite=arguments.overwrite, restart=arguments.restart, **told)
        print("\n".join(summary(arguments.output, report)))


def _say(text: str) -> None:
    print(text, flush=True)


def summary(output: str, report: Report) -> list[str]:
    """The figures that matter, a line each: before, Optimum's int8, after, and how a budget was held."""
    from optimum_slim.report.figures import budget_rows

    final, lines = report.final, [f"{output}: {report.final['precision']}"]
    for name, row in (("original", report.original), ("optimum int8", report.baseline_int8), ("slim", final)):
        quality = ", ".join(f"{metric} {value:.4g}" for metric, value in row["quality"].items())
        megabytes, p50 = row["file_bytes"] / 1e6, row["latency_ms"]["p50"]
        lines.append(f"  {name:<13} {megabytes:8.1f} MB  p50 {p50:8.2f} ms  {quality}")
    for row in final["latency"]:
        fp32, int8 = row["speedup"]["vs_fp32"], row["speedup"]["vs_optimum_int8"]
        where = f"{row['phase']}, batch {row['batch']}, {row['tokens']} tokens, {row['threads']} threads"
        lines.append(f"  {where}: {fp32['median']:.2f}x over fp32, {int8['median']:.2f}x over Optimum's int8")
    lines += [f"  {row['end']} {row['wanted']}: {row['reached']}" for row in budget_rows(report)]
    for key, what in (("high", "left in fp32"), ("denser", "as before their zeros")):
        if report.budget.get(key):
            lines.append(f"  {what}: {', '.join(report.budget[key])}")
    return lines

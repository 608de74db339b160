"""`optimum-cli slim plan`: what a recipe needs and what it leads to, without touching a weight."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from optimum_slim.commands.verb import Verb, add_recipe_arguments


class PlanCommand(Verb):
    EXAMPLES = """examples:
  optimum-cli slim plan encoder-fast --model ./my-classifier --data ./my-texts
  optimum-cli slim plan my.yaml --json
"""

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        add_recipe_arguments(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")

    def work(self) -> None:
        from optimum_slim.planning import planned

        plan = planned(self.recipe())
        rows: list[dict[str, Any]] = [
            {
                "step": step.name,
                "needs": list(step.asks),
                "layers": len(step.shape.blocks),
                "parameters": step.parameters,
                "predicted_bytes": step.predicted_bytes,
                "peak_memory_bytes": step.peak_bytes,
            }
            for step in (plan.original, *plan.steps)
        ]
        if self.args.json:
            told = {"task": plan.task.name, "model_type": plan.config.model_type, "streamed": plan.streamed}
            print(json.dumps(told | {"steps": rows}, indent=2))
            return
        held = ", one block in memory at a time" if plan.streamed else ""
        print(f"{plan.folder.resolve().name}: {plan.config.model_type}, {plan.task.name}{held}")
        print(f"  {'step':<22}{'layers':>7}{'parameters':>13}{'ONNX MB':>9}{'peak GB':>9}  needs")
        for row in rows:
            print(
                f"  {row['step']:<22}{row['layers']:>7}{row['parameters'] / 1e6:>12.2f}M"
                f"{row['predicted_bytes'] / 1e6:>9.1f}{row['peak_memory_bytes'] / 1e9:>9.1f}  {', '.join(row['needs'])}"
            )

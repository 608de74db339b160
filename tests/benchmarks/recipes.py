"""Run a shipped recipe on a real model and keep its figures.

python tests/benchmarks/recipes.py encoder-fast --model M --data D --set data.evaluation=validation+test --json F
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--output", help="keep the folder that is made")
    parser.add_argument("--json", type=Path, help="where the figures go; default results/<recipe>.json")
    arguments = parser.parse_args()
    from optimum_slim import load_recipe, slim
    from optimum_slim.commands.run import summary

    pairs = [pair.partition("=") for pair in arguments.set]
    overrides = {key: value for key, _, value in pairs}
    overrides |= {"model": f'"{arguments.model}"', "data.source": f'"{arguments.data}"'}
    with tempfile.TemporaryDirectory() as folder:
        output = arguments.output or f"{folder}/out"
        report = slim(load_recipe(arguments.recipe, overrides), output, say=print)
    print("\n".join(summary(arguments.recipe, report)))
    target = arguments.json or RESULTS / f"{arguments.recipe}.json"
    target.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""`optimum-cli slim list`: techniques with what each helps, and the shipped recipes."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from optimum_slim.commands.verb import Verb


class ListCommand(Verb):
    EXAMPLES = """examples:
  optimum-cli slim list
  optimum-cli slim list --json
"""

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON")

    def work(self) -> None:
        from optimum_slim.recipe import shipped_recipes
        from optimum_slim.techniques import technique_class, technique_names

        techniques: list[dict[str, Any]] = []
        for name in technique_names():
            found = technique_class(name)
            techniques.append({"name": name, "helps": list(getattr(found, "helps", ())), "what": _opening(found)})
        recipes: list[dict[str, Any]] = [
            {"name": name, "what": path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")}
            for name, path in shipped_recipes().items()
        ]
        if self.args.json:
            print(json.dumps({"techniques": techniques, "recipes": recipes}, indent=2))
            return
        print("techniques")
        for row in techniques:
            print(f"  {row['name']:<24}{', '.join(row['helps']):<14}{row['what']}")
        print("recipes")
        for row in recipes:
            print(f"  {row['name']:<24}{row['what']}")


def _opening(found: type) -> str:
    """The opening line of a technique's file says what it does for the reader."""
    return (sys.modules[found.__module__].__doc__ or found.__doc__ or "").strip().splitlines()[0].rstrip(".")

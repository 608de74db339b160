"""`optimum-cli slim list`: techniques with what each helps, and the shipped recipes."""

from __future__ import annotations

import json
from argparse import ArgumentParser

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
        from optimum_slim.training.trained import Trained

        techniques = []
        for name in technique_names():
            found = technique_class(name)
            helps = ("quality",) if issubclass(found, Trained) else found.helps
            techniques.append({"name": name, "helps": list(helps), "what": _first_sentence(found)})
        recipes = [
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


def _first_sentence(found: type) -> str:
    """The opening line of a technique's file says what it does for the reader."""
    import sys

    text = " ".join((sys.modules[found.__module__].__doc__ or found.__doc__ or "").split())
    return text.partition(".")[0]

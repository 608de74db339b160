"""Writes what `recipes/README.md` says of every key, from the dataclasses: a key is explained once, where it is read.

python -m tests.recipe_readme --write
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import io
import sys
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml

from optimum_slim.data.texts import Data
from optimum_slim.deploy.benchmark import Target
from optimum_slim.deploy.budget import Budget
from optimum_slim.deploy.choose import Deploy
from optimum_slim.recipe import Recipe, shipped_recipes
from optimum_slim.techniques import BUILT_IN, technique_class
from optimum_slim.techniques.technique import Technique
from optimum_slim.training.trained import Trained

README = Path(__file__).parents[1] / "recipes" / "README.md"
MARK = "<!-- From here on written by `python -m tests.recipe_readme --write`. -->\n"
SECTIONS = {"": Recipe, "data": Data, "deploy": Deploy, "deploy.target": Target, "budget": Budget}
WORDS = {int: "whole number", float: "number", str: "text", bool: "true, false", NoneType: "null", Any: "any"}


def written() -> str:
    """The whole file: what a person wrote above the mark, and below it what the code says."""
    return README.read_text(encoding="utf-8").partition(MARK)[0] + MARK + "\n".join(lines())


def lines() -> Iterator[str]:
    yield from ("", "## Shipped recipes", "", "| name | what it does |", "|---|---|")
    for name, path in shipped_recipes().items():
        yield f"| `{name}` | {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')} |"
    yield from ("", "## Keys", "")
    for prefix, kind in SECTIONS.items():
        if prefix:
            yield from ("", f"### `{prefix}`", "", paragraph(kind), "")
        yield from table(kind)
    yield from ("", "## Techniques", "")
    for name in BUILT_IN:
        kind = technique_class(name)
        place = "Stands under `train: with:`. " if issubclass(kind, Trained) else ""
        yield from (f"### `{name}`", "", opening(kind), "", place + paragraph(kind), "")
        yield from ("```yaml", *examples(kind), "```", "", *table(kind), "")
        for key, section in sections_in(kind):
            yield from (f"#### `{name}`: `{key}`", "", paragraph(section), "", *table(section), "")


def table(kind: type) -> Iterator[str]:
    """A row for each key of a dataclass."""
    yield from ("| key | value | default | meaning |", "|---|---|---|---|")
    hints, comments = typing.get_type_hints(kind), comments_in(kind)
    for field in dataclasses.fields(kind):
        of = hints[field.name]
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        section = dataclasses.is_dataclass(default)
        meaning = paragraph(type(default)) if section else comments.get(field.name, "")
        shown = "" if section else f"`{yaml.safe_dump(plain(default), default_flow_style=True).splitlines()[0]}`"
        yield f"| `{field.name.rstrip('_')}` | {in_words(of)} | {shown} | {meaning} |".replace("|  |", "| |")


def sections_in(kind: type) -> Iterator[tuple[str, type]]:
    """The keys of a technique that have keys of their own, and where these are explained."""
    for key, of in typing.get_type_hints(kind).items():
        found = (one for one in (of, *get_args(of)) if dataclasses.is_dataclass(one) and one is not Trained)
        yield from ((key, one) for one in found)


def in_words(kind: Any) -> str:
    """An annotation as a user would say it: `float | None` is "number, or null"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Technique, Trained):
        return "techniques"
    if dataclasses.is_dataclass(kind):
        return "keys, see below"
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (list, tuple):
        return f"list of {plural(in_words(arguments[0]))}"
    if origin is dict:
        return f"mapping of {' to '.join(plural(in_words(one)) for one in arguments)}"
    if arguments:
        return ", or ".join(in_words(one) for one in arguments)
    return WORDS[kind]


def plural(words: str) -> str:
    return f"{words}s" if words.endswith("number") else words


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def comments_in(kind: type) -> dict[str, str]:
    """What stands in the comment after each field, also after those of a class that it extends."""
    found = {}
    for one in reversed(kind.__mro__):
        if dataclasses.is_dataclass(one):
            found |= own_comments_in(one)
    return found


def own_comments_in(kind: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    fields = [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: by_line[node.end_lineno] for node in fields if node.end_lineno in by_line}


def opening(kind: type) -> str:
    """The first sentence of a technique's file."""
    return " ".join((sys.modules[kind.__module__].__doc__ or "").partition("\n\n")[0].split())


def paragraph(kind: type) -> str:
    """A class's docstring without its examples, on one line."""
    said = [line for line in inspect.cleandoc(kind.__doc__ or "").splitlines() if not line.startswith("- ")]
    return " ".join(" ".join(said).split())


def examples(kind: type) -> list[str]:
    """The YAML lines in a technique's docstring."""
    return [line for line in inspect.cleandoc(kind.__doc__ or "").splitlines() if line.startswith("- ")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file instead of printing it")
    if parser.parse_args().write:
        README.write_text(written(), encoding="utf-8")
    else:
        print(written())

"""What `recipes/README.md` says is what the code does."""

import re
import shlex

import pytest
import yaml
from optimum.commands.base import RootOptimumCLICommand

from optimum_slim.commands.slim import SlimCommand
from optimum_slim.recipe import Recipe, read_recipe
from optimum_slim.techniques import technique_class
from optimum_slim.training.trained import Trained
from tests.recipe_readme import README, written

TEXT = README.read_text(encoding="utf-8")


def test_the_explanation_is_what_the_code_says():
    assert written() == TEXT, "write it anew: python -m tests.recipe_readme --write"


@pytest.mark.parametrize("row", re.findall(r"^\| `.*", TEXT, re.MULTILINE))
def test_every_key_is_explained(row):
    assert row.strip("|").split("|")[-1].strip(), f"put a comment after the field: {row}"


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
def test_an_example_is_a_recipe(example):
    content = yaml.safe_load(example)
    if isinstance(content, dict):
        assert read_recipe(content).steps
        return
    for step in content:
        trained = issubclass(technique_class(next(iter(step))), Trained)
        steps = [{"train": {"labels": 1.0, "with": [step]}}] if trained else [step]
        assert isinstance(read_recipe({"slim": 1, "steps": steps}), Recipe)


@pytest.mark.parametrize("line", re.findall(r"^optimum-cli .*$", TEXT.replace("\\\n", ""), re.MULTILINE))
def test_a_command_can_be_typed(line):
    root = RootOptimumCLICommand("optimum-cli")
    SlimCommand(root.subparsers)
    args = root.parser.parse_args(shlex.split(line)[1:])
    assert args.func(args).recipe().model == "./my-classifier"

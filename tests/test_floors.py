"""The house stands on floors, and imports go down only."""

import ast
from pathlib import Path

import pytest

import optimum_slim

HOUSE = Path(optimum_slim.__file__).parent
FLOORS = (
    "commands", "optimizer quantizer", "flow claims", "supplies original", "company", "workspace", "planning", "recipe",
    "techniques deploy", "report", "training", "tasks", "data", "model", "processes",
    "errors files registration progress sources kernels",
)  # fmt: skip
HEIGHT = {name: -number for number, names in enumerate(FLOORS) for name in names.split()}
FILES = [path for path in sorted(HOUSE.rglob("*.py")) if path != HOUSE / "__init__.py"]
SHARED = (  # what techniques may import of their own floor
    "techniques.technique", "techniques.prune.importance", "techniques.quantize.awq", "techniques.quantize.gptq",
    "techniques.quantize.hqq", "techniques.quantize.neural_compressor", "techniques.quantize.rtn",
    "techniques.sparsify.allocation", "techniques.sparsify.changing", "techniques.sparsify.masks",
    "techniques.sparsify.scores", "techniques.sparsify.settings",
)  # fmt: skip


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, e.g. {"model.shape"}."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), "imports are absolute"
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {f"{node.module}.{a.name}" for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}
    return {name.removeprefix("optimum_slim.") for name in named if name.startswith("optimum_slim.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_imports_go_down_only(path):
    place = path.relative_to(HOUSE).with_suffix("").parts
    for name in imports_of(path):
        floor = name.split(".")[0]
        assert floor == place[0] or HEIGHT[floor] < HEIGHT[place[0]], f"{'.'.join(place)} imports {name}"


@pytest.mark.parametrize(
    "path", sorted(HOUSE.glob("techniques/*/*.py")), ids=lambda path: f"{path.parent.name}.{path.stem}"
)
def test_a_technique_imports_no_other_technique(path):
    beside = [name for name in imports_of(path) if name.startswith("techniques.")]
    assert [name for name in beside if not name.startswith(SHARED)] == []


def test_train_imports_no_other_technique():
    beside = {name for name in imports_of(HOUSE / "techniques" / "train.py") if name.startswith("techniques.")}
    assert beside == {"techniques.technique.Technique"}

"""Whole runs of tiny models, and the same after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from optimum_slim.flow import slim
from optimum_slim.model.grids import GRIDS_FILE
from optimum_slim.recipe import load_recipe
from tests.test_flow import SAME_BYTES, killed_run
from tests.tiny import save_rows, save_tiny


def whole_run(root: Path, family: str, task: str, steps: list[dict[str, Any]], **deploy: Any) -> Path:
    """A folder with `recipe.yaml`, and the `out` that an undisturbed run of it wrote."""
    data = {"source": str(save_rows(root / "texts", task)), "max_length": 16, "calibration": 16}
    content = {"slim": 1, "model": str(save_tiny(root / "model", family)), "data": data, "steps": steps}
    content["deploy"] = {"max_quality_loss": None, "target": {"tokens": [16]}, **deploy}
    (root / "recipe.yaml").write_text(yaml.safe_dump(content))
    slim(load_recipe(str(root / "recipe.yaml")), root / "out")
    return root


def check_same_after_kill(run: Path, output: Path, step: str) -> None:
    """Killed at a step, and started again, a run writes the same bytes."""
    killed_run(run / "recipe.yaml", output, step)
    slim(load_recipe(str(run / "recipe.yaml")), output)
    for file in (*SAME_BYTES, GRIDS_FILE):
        assert (output / file).read_bytes() == (run / "out" / file).read_bytes(), file

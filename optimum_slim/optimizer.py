"""Slim a model from Python in the manner of Optimum's ORTOptimizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optimum_slim.flow import slim
from optimum_slim.recipe import Recipe, load_recipe
from optimum_slim.report.report import Report


class SlimOptimizer:
    """A thin face over the flow: a model, then a recipe and a folder to write.

    optimizer = SlimOptimizer.from_pretrained("./my-classifier")
    report = optimizer.optimize("my-classifier-slim", recipe="encoder-fast", data="./my-texts")
    """

    def __init__(self, model: str):
        self.model = model

    @classmethod
    def from_pretrained(cls, model_or_path: str | Path) -> SlimOptimizer:
        """Takes a folder or a Hub id (`org/name` or `org/name@revision`); nothing is loaded yet."""
        return cls(str(model_or_path))

    def optimize(
        self,
        save_dir: str | Path,
        recipe: str | Path | Recipe = "encoder-fast",
        data: str | Path | None = None,
        overrides: dict[str, Any] | None = None,
        **options: Any,
    ) -> Report:
        """Runs a recipe on the model.

        Args:
            save_dir: the folder to write.
            recipe: a path, the name of a shipped recipe, or a Recipe, whose own model and data are then used.
            data: folder, file or Hub id of the texts.
            overrides: values by dotted key, e.g. {"steps.0.ratio": 0.5}.
            options: of `slim`: overwrite, restart, say.

        Raises:
            SlimError: see errors.py.
        """
        if isinstance(recipe, Recipe):
            return slim(recipe, save_dir, **options)
        values = {"model": self.model, **({} if data is None else {"data.source": str(data)}), **(overrides or {})}
        found = load_recipe(str(recipe), {key: json.dumps(value) for key, value in values.items()})
        return slim(found, save_dir, **options)

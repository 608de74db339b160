"""Quantize a model from Python in the manner of Optimum's quantizers: nothing is removed, only stored smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimum.quantization_base import OptimumQuantizer

from optimum_slim.flow import slim
from optimum_slim.recipe import read_recipe
from optimum_slim.report.report import Report


class SlimQuantizer(OptimumQuantizer):
    """A thin face over the flow, with a recipe that has no steps.

    quantizer = SlimQuantizer.from_pretrained("./my-llm")
    report = quantizer.quantize("my-llm-int8", precision="int8-weights", data="./my-texts")
    """

    def __init__(self, model: str):
        self.model = model

    @classmethod
    def from_pretrained(cls, model_or_path: str | Path, file_name: str | None = None) -> SlimQuantizer:
        """Takes a folder or a Hub id of a torch model; `file_name` is not used, as weights are safetensors."""
        return cls(str(model_or_path))

    def quantize(
        self,
        save_dir: str | Path,
        file_prefix: str | None = None,
        precision: str = "auto",
        data: str | dict[str, Any] | None = None,
        max_quality_loss: float | None = 0.02,
        **options: Any,
    ) -> Report:
        """Writes a folder with the model in the wanted precision.

        Args:
            save_dir: the folder to write. file_prefix: not used; the file is model.onnx.
            precision: as `deploy.precision` of a recipe; auto needs data.
            data: folder, file or Hub id of texts, or the recipe's whole `data` mapping.
            max_quality_loss: as in a recipe.
            options: of `slim`: overwrite, restart, say.

        Raises:
            SlimError: see errors.py.
        """
        content: dict[str, Any] = {"slim": 1, "model": self.model}
        if data is not None:
            content["data"] = data if isinstance(data, dict) else {"source": str(data)}
        content["deploy"] = {"precision": precision, "max_quality_loss": max_quality_loss}
        return slim(read_recipe(content), save_dir, **options)

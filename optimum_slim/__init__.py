"""optimum-slim makes transformer models small and fast on ordinary CPUs.

    import optimum_slim
    report = optimum_slim.slim(optimum_slim.load_recipe("encoder-fast", {"model": "...", "data.source": "..."}), "out")

`import optimum_slim` also lets plain `AutoModel.from_pretrained` load folders with per-layer widths.
"""

from __future__ import annotations

import importlib
from typing import Any

from optimum_slim.registration import register_when_imported

# Name: the module it lives in. Imported when first used, so that `optimum-cli --help` stays fast.
_PUBLIC = {
    "slim": "optimum_slim.flow",
    "SlimOptimizer": "optimum_slim.optimizer",
    "SlimQuantizer": "optimum_slim.quantizer",
    "session_options": "optimum_slim.kernels.session",
    "register": "optimum_slim.kernels.library",
    "load_recipe": "optimum_slim.recipe",
    "read_recipe": "optimum_slim.recipe",
    "Recipe": "optimum_slim.recipe",
    "planned": "optimum_slim.planning",
    "load_model": "optimum_slim.model.checkpoint",
    "save_model": "optimum_slim.model.checkpoint",
    "Report": "optimum_slim.report.report",
    "SlimError": "optimum_slim.errors",
    "Technique": "optimum_slim.techniques.technique",
    "Trained": "optimum_slim.training.trained",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'optimum_slim' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


register_when_imported()


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]

from __future__ import annotations

import pytest

from optimum_slim.planning import planned
from optimum_slim.recipe import read_recipe
from tests.tiny import save_rows, save_tiny


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Plans steps on a tiny model, and gives the plan or what stands in its way."""
    folder = tmp_path_factory.mktemp("sparsify")
    data = {"source": str(save_rows(folder / "texts", "text-classification")), "max_length": 16}
    content = {"slim": 1, "model": str(save_tiny(folder / "bert", "bert")), "data": data}
    content["deploy"] = {"precision": "fp32", "target": {"tokens": [16]}}

    def made(*steps):
        return planned(read_recipe(content | {"steps": list(steps)}))

    return made

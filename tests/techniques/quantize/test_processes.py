"""Several processes round alike: all end with the same weights, grids and ranges."""

from __future__ import annotations

import pytest
import torch

from tests.together import apart

SCRIPT = """
import os
from pathlib import Path
import torch
from optimum_slim.model.grids import grids_of
from optimum_slim.techniques.quantize.aware import QuantizeAware
from tests.techniques.sparsify.passes import texts, trained

folder = Path(__file__).parent
model = trained(QuantizeAware(delay=0), texts(), folder / "training", max_steps=4)
found = dict(model.state_dict())
for name, grid in grids_of(model).items():
    found |= {f"{name}.{part}": value for part, value in vars(grid).items() if torch.is_tensor(value)}
torch.save(found, folder / f"{os.environ['RANK']}.pt")
"""


@pytest.mark.slow
def test_two_processes_end_on_the_same_grids(tmp_path):
    first, second = apart(SCRIPT, tmp_path)
    assert any(name.endswith("input_scale") for name in first)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

"""Several processes round alike: all end with the same weights, grids and ranges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    (tmp_path / "train.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    places = {"PYTHONPATH": str(Path(__file__).parents[3]), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, tmp_path / "train.py"], check=True, env=os.environ | places, timeout=300)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert any(name.endswith("input_scale") for name in first)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

"""Several processes train one model: all end with the same weights, also of what learned beside it."""

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
from optimum_slim.techniques import technique_class
from tests.techniques.distill.test_families import larger, learn
from tests.tiny import tiny

folder, learned = Path(__file__).parent, {}
class Kept(technique_class("distill.hidden_states")):
    def end(self, model):
        learned.update({f"projection.{name}": value for name, value in self.state().items()})
        super().end(model)

for name in ("distill.relations", "distill.attentions", "distill.hidden_states"):
    technique = Kept() if name.endswith("states") else technique_class(name)(**{"heads": 4} if "rel" in name else {})
    student = tiny("bert")
    learn(technique, student, larger("bert"), folder / name, max_steps=4, learning_rate=3e-3)
    learned |= {f"{name}.{key}": value for key, value in student.state_dict().items()}
torch.save(learned, folder / f"{os.environ['RANK']}.pt")
"""


@pytest.mark.slow
def test_two_processes_learn_the_same(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    places = {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, tmp_path / "train.py"], check=True, env=os.environ | places, timeout=300)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert "projection.weight" in first
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

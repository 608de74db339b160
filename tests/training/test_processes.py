"""Several processes train one model: all end with the same weights, also of what learned beside it."""

from __future__ import annotations

import pytest
import torch

from tests.together import apart

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
    first, second = apart(SCRIPT, tmp_path)
    assert "projection.weight" in first
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

"""A model that stays on the disk is exported to the graph, and to the weights, of the whole model."""

from __future__ import annotations

import onnx
import pytest

from optimum_slim.deploy.export import export, export_folder
from optimum_slim.deploy.names import find_weights
from optimum_slim.deploy.verify import load_ort
from optimum_slim.model.checkpoint import load_model
from optimum_slim.tasks import task_named
from tests.contracts import CLOSE
from tests.tiny import answers, mostly_slow, save_tiny, token_batches


@pytest.mark.parametrize("family", mostly_slow("llama", "gpt2", "qwen2"))
def test_the_files_say_the_same(family, tmp_path):
    save_tiny(tmp_path / "model", family)
    whole, streamed = load_model(tmp_path / "model"), load_model(tmp_path / "model", streamed=True)
    task = task_named("auto", whole.config)
    export(whole, task, tmp_path / "whole" / "model.onnx")
    export_folder(streamed, task, tmp_path / "streamed")
    assert all(parameter.is_meta for parameter in streamed.parameters())
    mine, theirs = (onnx.load(tmp_path / kind / "model.onnx") for kind in ("streamed", "whole"))
    for tensor in mine.graph.initializer:
        tensor.ClearField("data_location")  # which loading notes
    assert mine.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    assert find_weights(mine, streamed) == find_weights(theirs, whole)
    session = load_ort(tmp_path / "streamed", task)
    for batch in token_batches():
        wanted = answers(whole, batch)
        assert (answers(session, batch) - wanted).abs().max() <= CLOSE * wanted.abs().max()

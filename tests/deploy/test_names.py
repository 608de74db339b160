"""Every linear and embedding of an export is found by its values, whatever the exporter called it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from transformers.pytorch_utils import Conv1D

from optimum_slim.deploy.export import export
from optimum_slim.deploy.names import find_weights
from optimum_slim.errors import ModelError
from optimum_slim.tasks import task_named
from tests.tiny import ENCODERS, FAMILIES, tiny

TABLES = (nn.Linear, Conv1D, nn.Embedding)
HEADS = [
    *((family, None) for family in FAMILIES),
    *((family, "ForMaskedLM") for family in ENCODERS),
    *((family, "Model") for family in ENCODERS),
]


def exported(model, folder):
    export(model, task_named("auto", model.config), folder / "model.onnx")
    return onnx.load(folder / "model.onnx")


def used(model):
    """The tables that an answer depends on: a base model has a pooler whose result is not exported."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, TABLES) and not (name.startswith("pooler") and type(model).__name__.endswith("Model"))
    }


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_every_linear_and_embedding_is_found_with_its_exact_values(family, head, tmp_path):
    model = tiny(family, head)
    graph = exported(model, tmp_path)
    found = find_weights(graph, model)
    assert found.keys() == used(model)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    nodes = {node.name for node in graph.graph.node}
    for name, place in found.items():
        value = stored[place.initializer].T if place.transposed else stored[place.initializer]
        assert np.array_equal(value, model.get_parameter(name).detach().numpy()), name
        assert place.node in nodes


@pytest.mark.parametrize("family", ["bert", "qwen2", "gpt2"])
@pytest.mark.parametrize("role", [nn.Embedding, (nn.Linear, Conv1D)])
def test_a_value_that_differs_by_the_last_bit_is_an_error(family, role, tmp_path):
    model = tiny(family)
    graph = exported(model, tmp_path)
    name, module = next((name, module) for name, module in model.named_modules() if isinstance(module, role))
    with torch.no_grad():
        flat = module.weight.view(-1)
        flat[5] = torch.nextafter(flat[5], torch.tensor(torch.inf))
    with pytest.raises(ModelError, match=f"{name}: initializer .* other values"):
        find_weights(graph, model)


def test_a_weight_that_is_not_in_the_graph_is_an_error(tmp_path):
    model = tiny("bert")
    graph = exported(model, tmp_path)
    lost = [node for node in graph.graph.node if node.name == "/bert/encoder/layer.1/intermediate/dense/MatMul"]
    assert len(lost) == 1
    graph.graph.node.remove(lost[0])
    with pytest.raises(ModelError, match=r"bert\.encoder\.layer\.1\.intermediate\.dense"):
        find_weights(graph, model)

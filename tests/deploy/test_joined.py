"""Linears that read the same input are one node afterwards, and what reads the file still knows each of them."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import onnx
import pytest
import torch

from optimum_slim.deploy.decoding import own_cached_attention
from optimum_slim.deploy.export import export
from optimum_slim.deploy.glue import observed
from optimum_slim.deploy.joined import join_linears
from optimum_slim.deploy.lowering import lower
from optimum_slim.deploy.names import module_path
from optimum_slim.deploy.parts import file_parts, layer_rows
from optimum_slim.deploy.precision import in_blocks, int8_rows, prepared
from optimum_slim.deploy.verify import load_ort
from optimum_slim.kernels.joined import JOINED_OPERATORS, parted
from optimum_slim.tasks import task_named
from tests.tiny import mostly_slow, tiny, token_batches

LAYERS = 3
# Projections and gates of one node, in int8-rows and in blocks. Norms come between in qwen3, and in blocks biases.
FOUND = {"llama": ((3, 3), (0, 0)), "mistral": ((3, 3), (3, 3)), "qwen2": ((3, 3), (0, 3)), "qwen3": ((0, 3), (0, 3))}
PRECISIONS = {
    "rows": int8_rows,
    "groups": partial(int8_rows, group_size=16),
    "4 bits": partial(in_blocks, bits=4),
    "8 bits": partial(in_blocks, bits=8),
}


@pytest.fixture(params=mostly_slow("mistral", "qwen2", families=tuple(FOUND)), scope="module")
def made(request, tmp_path_factory):
    model, folder = tiny(request.param), tmp_path_factory.mktemp(request.param)
    model.config.save_pretrained(folder)
    export(model, task_named("auto", model.config), folder / "model.onnx")
    return request.param, model, folder


def written(made, precision, folder):
    made[1].config.save_pretrained(folder)
    PRECISIONS[precision](prepared(made[2] / "model.onnx"), folder / "model.onnx")
    return onnx.load(folder / "model.onnx")


def answers(graph):
    outputs = [value.name for value in graph.graph.output]
    return [run[name] for run in observed(graph, outputs) for name in outputs]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_projections_and_gates_are_one_node_each(made, precision, tmp_path):
    counts = Counter(node.op_type for node in written(made, precision, tmp_path).graph.node)
    projections, gates = FOUND[made[0]][precision.endswith("bits")]
    assert sum(count for name, count in counts.items() if name.endswith("Joined")) == projections
    assert sum(count for name, count in counts.items() if name.endswith("SiluGated")) == gates
    assert counts["SlimPackedAttention"] == projections
    assert counts["SlimRotaryAttention"] == LAYERS - projections


def test_no_bit_changes_by_it(made):
    graph = prepared(made[2] / "model.onnx")
    own_cached_attention(graph)
    lower(graph, {})
    wanted = answers(graph)
    assert join_linears(graph) == sum(FOUND[made[0]][0])
    onnx.checker.check_model(graph, full_check=True)
    for found, right in zip(answers(graph), wanted, strict=True):
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("precision", ["rows", "4 bits"])
def test_each_weight_is_still_told_to_be_of_its_linear(made, precision, tmp_path):
    graph = written(made, precision, tmp_path)
    names = [one.name for node in graph.graph.node if node.op_type in JOINED_OPERATORS for one in parted(node)]
    assert all("_proj/MatMul" in name for name in names)
    parts = {row["part"]: row["bytes"] for row in file_parts(tmp_path / "model.onnx")}
    model = made[1]
    share = 1 if precision == "rows" else 0.5
    for part, path in (("attention", "self_attn"), ("feed-forward", "mlp")):
        count = sum(weight.numel() for name, weight in model.named_parameters() if path in name and weight.dim() == 2)
        assert share * count < parts[part] < 2 * share * count + 20000
    stored = {row["stored"] for row in layer_rows(tmp_path / "model.onnx")}
    assert stored == ({"int8"} if precision == "rows" else {"4-bit blocks"})


@pytest.mark.parametrize("precision", ["rows", "4 bits"])
def test_generation_is_that_of_any_batch(made, precision, tmp_path):
    written(made, precision, tmp_path)
    ort = load_ort(tmp_path, task_named("auto", made[1].config))
    (batch,) = token_batches(((3, 12),), "left")
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    together = ort.generate(**batch, **settings)[:, 12:]
    for row in range(3):
        real = batch["attention_mask"][row].bool()
        alone = {name: value[row : row + 1, real] for name, value in batch.items()}
        assert torch.equal(ort.generate(**alone, **settings)[0, int(real.sum()) :], together[row])


@pytest.mark.parametrize("how", ["sparse", "in floats"])
def test_linears_that_are_stored_apart_stay_apart(made, how):
    graph = prepared(made[2] / "model.onnx")
    names = [f"model.layers.{path}" for path in ("0.self_attn.k_proj", "1.mlp.up_proj")]
    read = {node.input[1] for node in graph.graph.node if node.op_type == "MatMul" and module_path(node) in names}
    assert len(read) == 2
    for tensor in graph.graph.initializer:
        if tensor.name in read:  # fits in both patterns
            array = np.zeros(tuple(tensor.dims), np.float32)
            array[::4, ::4] = 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    weights = [f"{name}.weight" for name in names]
    own_cached_attention(graph)
    if how == "sparse":
        lower(graph, dict(zip(weights, ("unstructured", "4x1"), strict=True)))
    else:
        lower(graph, {}, high=weights)
    projections, gates = FOUND[made[0]][0]
    assert join_linears(graph) == max(projections - 1, 0) + gates - 1

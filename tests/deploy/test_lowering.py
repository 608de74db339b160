"""SlimLinear nodes hold the weights that they stand for, and compute the same with our kernels and without."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from optimum_slim.deploy.export import export
from optimum_slim.deploy.graph import quantized_rows
from optimum_slim.deploy.integers import signed_integers
from optimum_slim.deploy.lowering import lower, uses_kernels
from optimum_slim.deploy.machine import session_options
from optimum_slim.deploy.measure import one_linear
from optimum_slim.deploy.names import module_path
from optimum_slim.deploy.precision import int8_rows, prepared
from optimum_slim.errors import ModelError
from optimum_slim.kernels.library import library_path
from optimum_slim.kernels.packing import unpack
from optimum_slim.model.latency import Point
from optimum_slim.tasks import task_named
from tests.tiny import tiny, token_batches


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A BERT whose first FFN weight is sparse in blocks of 4x4, and its export."""
    model, folder = tiny("bert"), tmp_path_factory.mktemp("lowering")
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    keep = torch.rand(32, 16, generator=torch.Generator().manual_seed(0)) < 0.2
    with torch.no_grad():
        weight.mul_(keep.repeat_interleave(4, 0).repeat_interleave(4, 1))
    export(model, task_named("auto", model.config), folder / "model.onnx")
    return model, folder / "model.onnx"


SPARSE = "bert.encoder.layer.0.intermediate.dense.weight"


def slim_nodes(graph):
    return {module_path(node): node for node in graph.graph.node if node.op_type.startswith("SlimLinear")}


@pytest.mark.parametrize("group_size", [None, 16])
def test_a_node_holds_the_weight_to_half_a_step(exported, group_size):
    model, path = exported
    graph = onnx.load(path)
    lower(graph, {SPARSE: "4x4"}, group_size)
    stored = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    nodes = slim_nodes(graph)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m.weight.numel() >= 1024}
    assert set(nodes) == set(linears)
    for name, linear in linears.items():
        _, gaps, values, scale, bias = nodes[name].input
        n, k = linear.weight.shape
        pattern = "4x4" if f"{name}.weight" == SPARSE else "dense"
        integers = unpack(stored[gaps], stored[values], n, k, pattern)
        step = stored[scale].repeat(k // stored[scale].shape[1], 1)
        assert (np.abs(integers * step - linear.weight.detach().numpy()) <= step * 0.5001).all()
        np.testing.assert_array_equal(stored[bias], linear.bias.detach().numpy())


def test_zeros_are_not_stored(exported):
    model, path = exported
    graph = onnx.load(path)
    lower(graph, {SPARSE: "4x4"})
    values = slim_nodes(graph)[SPARSE.removesuffix(".weight")].input[2]
    stored = next(t for t in graph.graph.initializer if t.name == values)
    zeros = int((model.bert.encoder.layer[0].intermediate.dense.weight == 0).sum())
    assert stored.dims[0] <= 128 * 64 - zeros + 16


def test_weights_that_do_not_fit_their_pattern_are_an_error(exported):
    graph = onnx.load(exported[1])
    with pytest.raises(ModelError, match=r"layer.1/output/dense/MatMul: 2:4 keeps at most 2 of 4"):
        lower(graph, {"bert.encoder.layer.1.output.dense.weight": "2:4"})


@pytest.mark.parametrize("zeros", [0.0, 0.8])
def test_integers_spread_so_far_and_no_farther(zeros):
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((64, 576)).astype(np.float32) * (draw.random((64, 576)) >= zeros)
    weight[0, 5] = 20  # one large weight is worth all 127
    integers, scale = signed_integers("w", weight, None, spread=30)
    spread = [np.sqrt(np.square(row[row != 0], dtype=float).mean()) for row in integers]
    assert np.median(spread) > 29
    assert max(spread[1:]) < 31
    assert np.abs(integers[0]).max() == 127
    assert (np.abs(integers * scale - weight) <= scale * 0.5001).all()
    whole = signed_integers("w", weight, None)[0]
    assert np.abs(whole).max(1).min() == 127


def test_a_group_of_zeros_has_a_scale():
    integers, scale = quantized_rows(np.zeros((2, 8), np.float32), 4)
    assert not integers.any()
    np.testing.assert_array_equal(scale, np.ones((2, 2)))


@pytest.mark.skipif(library_path() is None, reason="the kernels are not built here")
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("threads", [1, 2])
def test_answers_are_the_same_with_our_kernels_and_without(exported, tmp_path, group_size, threads):
    int8_rows(prepared(exported[1]), tmp_path / "model.onnx", group_size, {SPARSE: "4x4"})
    assert uses_kernels(tmp_path / "model.onnx")
    assert not uses_kernels(exported[1])
    sessions = [
        onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), session_options(threads, kernels))
        for kernels in (True, False)
    ]
    for batch in token_batches():
        feeds = {name: value.numpy() for name, value in batch.items()}
        feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
        ours, stock = (session.run(None, feeds)[0] for session in sessions)
        np.testing.assert_allclose(ours, stock, rtol=0.02, atol=0.02 * np.abs(stock).max())


@pytest.mark.parametrize(("pattern", "share"), [("4x1", 0.2), ("4x2", 0.2), ("4x4", 0.2), ("unstructured", 0.25)])
def test_nine_zeros_of_ten_leave_a_small_file(pattern, share):
    graph = one_linear(Point("SlimLinear", 384, 1536, 1, 1, pattern, 0.9))
    stored = {tensor.name: len(tensor.raw_data) for tensor in graph.graph.initializer}
    assert stored["gaps"] + stored["values"] <= share * 384 * 1536

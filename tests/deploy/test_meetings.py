"""Residuals and gates stand in the node of the linear that they meet, norms of decoders are one node; answers stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimum_slim.deploy.blocks import set_level
from optimum_slim.deploy.export import export
from optimum_slim.deploy.glue import observed
from optimum_slim.deploy.joined import join_linears
from optimum_slim.deploy.lowering import lower
from optimum_slim.deploy.meetings import fuse_meetings
from optimum_slim.deploy.norms import fuse_rms_norms
from optimum_slim.deploy.precision import in_blocks, int8_rows, prepared
from optimum_slim.tasks import task_named
from tests.tiny import mostly_slow, tiny

# Of three blocks: residuals, gates and norms. Two more of qwen3's norms scale queries and keys.
FOUND = {"mistral": (6, 3, 7), "llama": (6, 3, 7), "qwen2": (6, 3, 7), "qwen3": (6, 3, 13)}
BIASED = ("llama",)  # where weights stand in blocks, a bias is added apart, and comes between


@pytest.fixture(params=mostly_slow("mistral", "qwen3", families=tuple(FOUND)), scope="module")
def made(request, tmp_path_factory):
    model, folder = tiny(request.param), tmp_path_factory.mktemp(request.param)
    export(model, task_named("auto", model.config), folder / "model.onnx")
    return request.param, folder / "model.onnx"


def operators(graph):
    return Counter(node.op_type for node in graph.graph.node)


def answers(graph):
    outputs = [value.name for value in graph.graph.output]
    return [run[name] for run in observed(graph, outputs) for name in outputs]


@pytest.mark.parametrize("precision", [int8_rows, lambda *files: in_blocks(*files, bits=4)], ids=["rows", "4 bits"])
def test_every_residual_gate_and_norm_of_a_decoder_is_found(made, precision, tmp_path):
    family, path = made
    residuals, gates, norms = FOUND[family]
    if family in BIASED and precision is not int8_rows:
        residuals = gates = 0
    precision(prepared(path), tmp_path / "model.onnx")
    counts = operators(onnx.load(tmp_path / "model.onnx"))
    assert counts["SlimLinearAdd"] + counts["SlimMatMulNBitsAdd"] == residuals
    assert counts["SlimLinearSiluGated"] + counts["SlimMatMulNBitsSiluGated"] == gates
    assert counts["SlimRmsNorm"] == norms
    assert counts["Pow"] == 0


def test_meetings_change_no_bit_and_norms_hardly_any(made):
    _, path = made
    graph = prepared(path)
    wanted = answers(graph)
    fuse_rms_norms(graph)
    for found, right in zip(answers(graph), wanted, strict=True):
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * np.abs(right).max())
    lower(graph, {})
    wanted = answers(graph)
    assert fuse_meetings(graph)
    onnx.checker.check_model(graph, full_check=True)
    for found, right in zip(answers(graph), wanted, strict=True):
        np.testing.assert_array_equal(found, right)


def test_what_is_parted_again_is_as_it_was(made, tmp_path):
    family, path = made
    in_blocks(prepared(path), tmp_path / "model.onnx", 4)
    graph = onnx.load(tmp_path / "model.onnx")
    wanted = answers(graph)
    set_level(graph, 4)
    after = operators(graph)
    assert {name for name in after if "SlimMatMulNBits" in name} == {"SlimMatMulNBits"}
    assert after["SlimMatMulNBits"] == 3 * 7 + 1
    assert all(one.name.endswith("/MatMul_Q4") for one in graph.graph.node if one.op_type == "SlimMatMulNBits")
    for found, right in zip(answers(graph), wanted, strict=True):
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * np.abs(right).max())
    again = onnx.ModelProto()
    again.CopyFrom(graph)
    join_linears(again)
    fuse_meetings(again)
    for found, right in zip(answers(again), wanted, strict=True):
        np.testing.assert_array_equal(found, right)
    assert fuse_meetings(graph) == (0 if family in BIASED else sum(FOUND[family][:2]))
    set_level(graph, 1)
    assert not any(node.op_type.startswith("SlimMatMulNBits") for node in graph.graph.node)
    answers(graph)


@pytest.mark.parametrize(
    ("meeting", "shape"), [("Add", [1, "tokens", 32]), ("Mul", ["batch", 1, 32]), ("Add", [32]), ("Sub", None)]
)
def test_a_tensor_that_is_spread_over_texts_or_tokens_is_met_apart(meeting, shape):
    """Embeddings of positions, a factor of each text, or what is no meeting at all."""
    weight = np.random.default_rng(0).standard_normal((48, 32)).astype(np.float32)
    axes, other = [0, 1], helper.make_node("Identity", ["whole"], ["other"])
    if shape is not None:
        keepdims = len(shape) == 3
        axes = [axis for axis, size in enumerate(shape) if size == 1] if keepdims else axes
        other = helper.make_node("ReduceMean", ["whole", "axes"], ["other"], keepdims=int(keepdims))
    nodes = [
        helper.make_node("Gather", ["others", "input_ids"], ["whole"]),
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "weight"], ["linear"], name="/one/MatMul"),
        other,
        helper.make_node(meeting, ["linear", "other"], ["logits"]),
    ]
    stored = {
        "table": np.random.default_rng(1).standard_normal((128, 48)).astype(np.float32),
        "others": np.random.default_rng(2).standard_normal((128, 32)).astype(np.float32),
        "weight": weight,
        "axes": np.array(axes, np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", 32])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    lower(model, {})
    assert operators(model)["SlimLinear"] == 1
    assert fuse_meetings(model) == 0

"""A file of sparse layers needs little memory also where it is loaded without our kernels; and what is asked about a
graph needs little memory for its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import BertConfig, BertForSequenceClassification

from optimum_slim.deploy.benchmark import resident_bytes
from optimum_slim.deploy.export import export_folder
from optimum_slim.deploy.lowering import lower
from optimum_slim.deploy.memory import LARGE, opened, thinned
from optimum_slim.deploy.precision import PRECISIONS, prepared
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.tasks.text_classification import TextClassification
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude


def exported(folder, pattern=None):
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=6, architectures=["BertForSequenceClassification"])
    model = BertForSequenceClassification(config).eval()
    if pattern:
        SparsifyMagnitude(ratio=0.9, pattern=pattern).apply(model)
    return export_folder(model, TextClassification, folder), sparsity_in(model.config)


@pytest.mark.slow
def test_without_kernels_it_takes_at_most_twice_a_dense_session(tmp_path):
    folder, _ = exported(tmp_path / "dense")
    PRECISIONS["int8-dynamic"](prepared(folder / "model.onnx"), tmp_path / "int8.onnx")
    PRECISIONS["int8-rows"](prepared(folder / "model.onnx"), tmp_path / "rows.onnx")
    dense = resident_bytes(tmp_path / "int8.onnx", 1, 128)
    assert resident_bytes(tmp_path / "rows.onnx", 1, 128, kernels=False) <= 2 * dense
    for pattern in ("unstructured", "4x1", "4x2", "4x4"):
        folder, patterns = exported(tmp_path / pattern, pattern)
        PRECISIONS["int8-rows"](prepared(folder / "model.onnx"), tmp_path / f"{pattern}.onnx", None, patterns)
        assert resident_bytes(tmp_path / f"{pattern}.onnx", 1, 128, kernels=False) <= 2 * dense, pattern
        assert resident_bytes(tmp_path / f"{pattern}.onnx", 1, 128) <= dense, pattern


def of_large_weights():
    """A table whose rows are gathered, two products, one of them with a weight that something else reads as well, and a
    head with a bias."""
    draws = np.random.default_rng(0)
    weights = {"table": (512, 256), "weight": (256, 384), "head": (384, 512), "bias": (512,), "whole": (256, 384)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["product"], name="/product/MatMul"),
        helper.make_node("MatMul", ["rows", "whole"], ["others"], name="/others/MatMul"),
        helper.make_node("ReduceSum", ["whole"], ["total"], keepdims=0),
        helper.make_node("Add", ["product", "others"], ["sum"]),
        helper.make_node("Gemm", ["sum", "head", "bias"], ["y"], name="/head/Gemm"),
    ]
    body = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["tokens"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "total")],
        [numpy_helper.from_array(draws.standard_normal(shape, np.float32), name) for name, shape in weights.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)])


def run(graph, ids, names=("rows", "product", "others", "y", "total")):
    with opened(graph, names) as session:
        return dict(zip(names, session.run(list(names), {"ids": np.array(ids)}), strict=True))


def test_a_thinned_graph_has_the_same_sizes_and_small_weights():
    graph = of_large_weights()
    before, thin = graph.SerializeToString(), thinned(graph)
    assert graph.SerializeToString() == before
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in thin.graph.initializer}
    assert sizes.pop("whole") >= LARGE  # which is read as a whole, too
    assert max(sizes.values()) < LARGE
    assert not {"table", "weight", "head"} & set(sizes)
    found, wanted = run(thin, [3, 400, 3]), run(graph, [3, 400, 3])
    assert {name: value.shape for name, value in found.items()} == {k: v.shape for k, v in wanted.items()}
    assert found["total"] == wanted["total"]
    assert np.array_equal(found["y"][0], found["y"][2])
    assert not np.allclose(found["y"][0], found["y"][1])
    other = run(thinned(graph), [3, 400, 3])
    assert all(np.array_equal(found[name], other[name]) for name in found)


def test_values_stay_as_large_as_they_are():
    """In deep models the small differences of rounding would grow with them."""
    found = run(thinned(of_large_weights()), list(range(64)))
    assert 0.5 < found["rows"].std() < 2
    for name in ("product", "others"):
        assert 0.5 < found[name].std() / found["rows"].std() < 2


@pytest.mark.parametrize("group_size", [None, 32])
def test_integers_are_thinned_too(group_size):
    graph = of_large_weights()
    assert lower(graph, {}, group_size) == ["/product/MatMul", "/others/MatMul", "/head/Gemm"]
    thin = thinned(graph)
    assert not any(node.op_type.startswith("SlimLinear") for node in thin.graph.node)
    assert max(tensor.ByteSize() for tensor in thin.graph.initializer if tensor.name != "whole") < LARGE
    names = ("rows", "product", "y")
    found, wanted = run(thin, [1, 2], names), run(graph, [1, 2], names)
    assert [found[name].shape for name in names] == [wanted[name].shape for name in names]


def test_what_a_subgraph_reads_stays():
    graph = of_large_weights()
    inner = [
        helper.make_graph(
            [helper.make_node("MatMul", ["rows", name], [f"{name}.y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None)],
        )
        for name in ("weight", "whole")
    ]
    graph.graph.initializer.append(numpy_helper.from_array(np.array(True), "which"))
    graph.graph.node.append(helper.make_node("If", ["which"], ["chosen"], then_branch=inner[0], else_branch=inner[1]))
    thin = thinned(graph)
    assert {"weight", "whole"} <= {tensor.name for tensor in thin.graph.initializer}
    assert run(thin, [5], ("chosen",))["chosen"].shape == (1, 384)

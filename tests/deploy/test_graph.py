"""Rewrites of a graph change how it is stored or run, and not what it computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimum_slim.deploy.graph import (
    fold_transposed_weights,
    quantize_embeddings,
    share_embeddings,
    sum_residuals,
    tied_heads,
)

ROWS, WIDTH = 80, 64
TABLE = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
IDS = {"ids": np.array([[3, 7, 3, 79]])}


def graph_of(nodes, values, output_shape):
    """A graph from int64 `ids` [1, 4] to float `out`."""
    initializers = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(
        [
            helper.make_node(kind, inputs, [output], name=output, **attributes)
            for kind, inputs, output, attributes in nodes
        ],
        "test",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, output_shape)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(graph):
    onnx.checker.check_model(graph)
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(None, IDS)[0]


def operators(graph):
    return [node.op_type for node in graph.graph.node]


def normalized(first, second, values):
    nodes = [
        ("Gather", ["table", "ids"], "x", {}),
        ("Mul", ["x", "x"], "y", {}),
        ("Add", [first, second], "sum", {}),
        ("LayerNormalization", ["sum", "ones"], "out", {"axis": -1}),
    ]
    return graph_of(nodes, {"table": TABLE, "ones": np.ones(WIDTH, np.float32), **values}, [1, 4, WIDTH])


def test_residuals_before_a_layer_norm_become_sums():
    graph = normalized("x", "y", {})
    before = run(graph)
    assert sum_residuals(graph) == 1
    assert operators(graph) == ["Gather", "Mul", "Sum", "LayerNormalization"]
    assert np.allclose(before, run(graph), atol=1e-5)


def test_biases_before_a_layer_norm_stay_additions():
    graph = normalized("y", "bias", {"bias": TABLE[0]})
    assert sum_residuals(graph) == 0
    assert "Add" in operators(graph)


def test_transposes_of_weights_are_stored_instead_of_computed():
    nodes = [
        ("Gather", ["table", "ids"], "x", {}),
        ("Transpose", ["table"], "head", {"perm": [1, 0]}),
        ("MatMul", ["x", "head"], "out", {}),
    ]
    graph = graph_of(nodes, {"table": TABLE}, [1, 4, ROWS])
    before = run(graph)
    fold_transposed_weights(graph)
    assert operators(graph) == ["Gather", "MatMul"]
    assert np.array_equal(before, run(graph))


def test_transposes_that_reorder_other_axes_compute_as_before():
    nodes = [("Transpose", ["cubes"], "turned", {"perm": [0, 2, 1]}), ("Gather", ["turned", "ids"], "out", {})]
    graph = graph_of(nodes, {"cubes": TABLE.reshape(ROWS, 8, 8)}, [1, 4, 8, 8])
    before = run(graph)
    fold_transposed_weights(graph)
    assert np.array_equal(before, run(graph))


def with_head(head):
    nodes = [("Gather", ["table", "ids"], "x", {}), ("MatMul", ["x", "head"], "out", {})]
    return graph_of(nodes, {"table": TABLE, "head": np.ascontiguousarray(head.T)}, [1, 4, ROWS])


def test_heads_are_tied_where_every_value_is_the_embeddings():
    assert tied_heads(with_head(TABLE)) == {"head": "table"}
    assert tied_heads(with_head(TABLE + (np.arange(ROWS) == 5)[:, None])) == {}


def test_tied_heads_share_one_table_and_compute_the_same():
    graph = with_head(TABLE)
    before = run(graph)
    share_embeddings(graph, tied_heads(graph))
    assert [tensor.name for tensor in graph.graph.initializer] == ["table"]
    assert np.allclose(before, run(graph), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_quantized_embeddings_are_off_by_at_most_half_a_step_of_their_row(scale):
    table = (TABLE * scale * np.linspace(0.1, 10, ROWS)[:, None]).astype(np.float32)
    table[7] = 0  # a token that was never trained
    nodes = [
        ("Gather", ["table", "ids"], "x", {}),
        ("Gather", ["table", "ids"], "y", {}),
        ("Add", ["x", "y"], "out", {}),
    ]
    graph = graph_of(nodes, {"table": table}, [1, 4, WIDTH])
    quantize_embeddings(graph, {})
    stored = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    assert stored == {"table.integers": TensorProto.INT8, "table.scale": TensorProto.FLOAT}
    wanted = table[IDS["ids"]]
    half_step = np.abs(wanted).max(-1, keepdims=True) / 127 / 2
    assert (np.abs(run(graph) / 2 - wanted) <= half_step * 1.0001).all()

"""What leads to tokens that nobody reads is not computed, and the answers are the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimum_slim.deploy.export import export
from optimum_slim.deploy.glue import observed
from optimum_slim.deploy.memory import opened
from optimum_slim.deploy.precision import prepared
from optimum_slim.deploy.read_tokens import compute_read_tokens
from optimum_slim.tasks import task_named
from tests.tiny import ENCODERS, GROUPED, mostly_slow, tiny

FAMILIES = mostly_slow("bert", "distilbert", "llama", "qwen3", families=(*ENCODERS, *GROUPED))


def exported(model, folder):
    export(model, task_named("auto", model.config), folder / "model.onnx")
    return folder / "model.onnx"


def rows_of_linears(graph):
    """How many tokens each linear of the last layer meets, in a text of 11: by the input's name."""
    names = [node.input[0] for node in graph.graph.node if node.op_type == "MatMul" and ".2/" in node.name]
    return {name: value.shape[1] for name, value in observed(graph, names)[1].items() if value.ndim == 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_answers_for_what_is_read(family, tmp_path):
    model = tiny(family, "ForSequenceClassification" if family in ENCODERS else None)
    graph = prepared(exported(model, tmp_path), "last")
    queries, *others = rows_of_linears(graph).values()
    assert queries == 1
    assert set(others) == {1, 11}
    assert others.count(11) == 1  # what keys and values are made of
    assert compute_read_tokens(graph) == 0


@pytest.mark.parametrize("head", ["ForTokenClassification", "Model"])
def test_where_every_token_is_read_every_token_is_computed(head, tmp_path):
    graph = prepared(exported(tiny("bert", head), tmp_path))
    assert set(rows_of_linears(graph).values()) == {11}


# How hidden states `x` become `y`, of which nodes read some tokens as `z`. Weights: w [8, 8], b [8], row [1, 8].
KEPT = {
    "first": ("y = MatMul(x, w)", 0),
    "last": ("y = MatMul(x, w)", -1),
    "another": ("y = MatMul(x, w)", 3),
    "bias and norm": ("m = MatMul(x, w)  a = Add(m, b)  y = LayerNormalization(a, b, b)", 0),
    "residual": ("m = MatMul(x, w)  y = Add(m, x)", 2),
    "one row for all": ("m = MatMul(x, w)  r = Mul(m, row)  y = Tanh(r)", 0),
    "heads": ("m = MatMul(x, w)  h = Reshape(m, split)  t = Transpose<perm=[0,2,1,3]>(h)  "
              "s = Softmax<axis=-1>(t)  u = Transpose<perm=[0,2,1,3]>(s)  y = Reshape(u, join)", 1),
    "tokens meet": ("q = MatMul(x, w)  k = Transpose<perm=[0,2,1]>(x)  s = MatMul(q, k)  p = Softmax(s)  "
                    "y = MatMul(p, x)", 0),
    "a mean of each": ("m = MatMul(x, w)  c = ReduceMean(m, last)  y = Sub(m, c)", 0),
}  # fmt: skip
WHOLE = {
    "no weights": "y = Tanh(x)",
    "over tokens": "m = MatMul(x, w)  y = Softmax<axis=1>(m)",
    "a mean over tokens": "m = MatMul(x, w)  c = ReduceMean(m, tokens)  y = Sub(m, c)",
    "summed up": "m = MatMul(x, w)  y = CumSum(m, one)",
    "read by others": "y = MatMul(x, w)  other = ReduceSum(y)  more = Identity(other)",
    "mixed up": "m = MatMul(x, w)  h = Reshape(m, mixed)  y = Reshape(h, whole)",
}


def graph_of(body, index=0):
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    agraph (int64[batch, tokens] input_ids) => (float[batch, 8] z{", float[a, b, c] more" if "more" in body else ""}) {{
        x = Gather(table, input_ids)  {body}  z = Gather<axis=1>(y, index)
    }}"""
    graph, draw = onnx.parser.parse_model(text), np.random.default_rng(0)
    stored = {name: draw.standard_normal(size).astype(np.float32) for name, size in
              {"table": (64, 8), "w": (8, 8), "b": (8,), "row": (1, 8)}.items()}  # fmt: skip
    stored |= {"index": np.array(index), "one": np.array(1), "last": np.array([-1]), "tokens": np.array([1])}
    stored |= {"split": np.array([0, 0, 2, 4]), "join": np.array([0, 0, 8])}
    stored |= {"mixed": np.array([0, 2, -1]), "whole": np.array([0, -1, 8])}
    graph.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    return graph


def answers(graph):
    with opened(graph) as session:
        ids = np.random.default_rng(1).integers(0, 64, (3, 6))
        return session.run(["z"], {"input_ids": ids})[0]


@pytest.mark.parametrize(("body", "index"), KEPT.values(), ids=KEPT)
def test_one_token_of_what_treats_each_by_itself(body, index):
    graph = graph_of(body, index)
    wanted = answers(graph)
    assert compute_read_tokens(graph) > 0
    np.testing.assert_allclose(answers(graph), wanted, atol=1e-6)
    products = [node.output[0] for node in graph.graph.node if node.op_type == "MatMul"]
    assert all(value.shape[1] == 1 for value in observed(graph, products)[1].values())
    onnx.checker.check_model(graph)


@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
def test_all_tokens_of_what_does_not(body):
    graph = graph_of(body)
    before = graph.SerializeToString(deterministic=True)
    assert compute_read_tokens(graph) == 0
    assert graph.SerializeToString(deterministic=True) == before


def test_some_tokens_between_stored_bounds():
    graph = graph_of("y = MatMul(x, w)")
    del graph.graph.node[-1]
    bounds = {"start": [2], "end": [4], "axis": [1]}
    for name, value in bounds.items():
        graph.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    graph.graph.node.append(helper.make_node("Slice", ["y", *bounds], ["some"]))
    graph.graph.node.append(helper.make_node("Tanh", ["some"], ["z"]))
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["batch", 2, 8]))
    wanted = answers(graph)
    assert compute_read_tokens(graph) == 1
    np.testing.assert_array_equal(answers(graph), wanted)

"""SlimAttention and SlimResidualNorm compute what their functions compute, and refuse what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.onnx_pb import ModelProto, NodeProto, TensorProto

from optimum_slim.kernels.attention import attention_function, attention_node
from optimum_slim.kernels.function import DOMAIN
from optimum_slim.kernels.norm import residual_norm_function, residual_norm_node
from tests.kernels.layers import random_rows, session
from tests.kernels.test_numbers import each_isa  # noqa: F401

LOWEST = np.finfo(np.float32).min


def model_of(node: NodeProto, ranks: dict[str, int]) -> ModelProto:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{i}" for i in range(rank)])
        for name, rank in ranks.items()
    ]
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    functions = [attention_function(), residual_norm_function()]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=9)


def attention(heads: int) -> ModelProto:
    ranks = {"query": 3, "key": 3, "value": 3, "mask": 4}
    return model_of(attention_node(list(ranks), "y", heads), ranks)


def norm(epsilon: float = 1e-6) -> ModelProto:
    ranks = {"a": 3, "b": 3, "weight": 1, "bias": 1}
    return model_of(residual_norm_node(list(ranks), "y", epsilon), ranks)


def attention_inputs(batch, queries, keys, width, mask=(1, 1, 1)):
    mask_values = np.where(np.random.default_rng(0).random((*mask, keys)) < 0.3, LOWEST, np.float32(0))
    mask_values[..., 0] = 0
    query = random_rows(batch, queries, width) / 2
    key, value = random_rows(batch, keys, width, seed=2) / 2, random_rows(batch, keys, width, seed=3)
    return {"query": query, "key": key, "value": value, "mask": mask_values.astype(np.float32)}


def norm_inputs(batch, tokens, width):
    rows = {name: random_rows(batch, tokens, width, seed=i) for i, name in enumerate(("a", "b"))}
    return rows | {name: random_rows(width, seed=i + 5) for i, name in enumerate(("weight", "bias"))}


# Heads, batch, queries, keys, size of a head, and the mask's batch, heads and queries.
ATTENTIONS = [
    (1, 1, 1, 1, 1, (1, 1, 1)),
    (3, 2, 33, 33, 20, (2, 1, 33)),
    (2, 1, 5, 130, 64, (1, 2, 5)),
    (12, 1, 128, 128, 32, (1, 1, 1)),
    (2, 3, 7, 16, 17, (3, 2, 1)),
]


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize(("heads", "batch", "queries", "keys", "size", "mask"), ATTENTIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_is_that_of_its_function(heads, batch, queries, keys, size, mask, threads):
    inputs = attention_inputs(batch, queries, keys, heads * size, mask)
    ours = session(attention(heads), True, threads).run(None, inputs)[0]
    stock = session(attention(heads), False).run(None, inputs)[0]
    np.testing.assert_allclose(ours, stock, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("batch", "queries"), [(0, 4), (1, 0)])
def test_no_texts_have_no_answers(batch, queries):
    inputs = attention_inputs(batch, queries, 4, 16)
    assert session(attention(2)).run(None, inputs)[0].shape == (batch, queries, 16)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 384), (1, 128, 100), (2, 0, 8), (64, 16, 768)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_norm_is_that_of_its_function(shape, threads):
    inputs = norm_inputs(*shape)
    ours = session(norm(), True, threads).run(None, inputs)[0]
    stock = session(norm(), False).run(None, inputs)[0]
    np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("each_isa")
def test_a_text_has_the_same_answer_alone_and_in_a_batch():
    inputs = attention_inputs(3, 37, 37, 48, (3, 1, 1))
    whole = session(attention(2)).run(None, inputs)[0]
    alone = session(attention(2)).run(None, {name: value[1:2] for name, value in inputs.items()})[0]
    np.testing.assert_array_equal(alone, whole[1:2])
    inputs = norm_inputs(3, 5, 40)
    whole = session(norm()).run(None, inputs)[0]
    alone = session(norm()).run(None, inputs | {name: inputs[name][1:2] for name in ("a", "b")})[0]
    np.testing.assert_array_equal(alone, whole[1:2])


def test_a_key_that_is_masked_for_all_is_nothing():
    inputs = attention_inputs(1, 4, 9, 16, (1, 1, 1))
    inputs["mask"][..., 5] = LOWEST
    before = session(attention(2)).run(None, inputs)[0]
    inputs["key"][:, 5] = inputs["value"][:, 5] = 100
    np.testing.assert_array_equal(session(attention(2)).run(None, inputs)[0], before)


BAD_ATTENTION = {
    "width no multiple of heads": ({"query": (1, 4, 9), "key": (1, 4, 9), "value": (1, 4, 9)}, "a multiple of heads"),
    "other batch": ({"query": (2, 4, 8)}, "differ in batch or width"),
    "other width": ({"query": (1, 4, 6)}, "differ in batch or width"),
    "keys and values that differ": ({"value": (1, 5, 8)}, "different shapes"),
    "no keys": ({"key": (1, 0, 8), "value": (1, 0, 8), "mask": (1, 1, 1, 0)}, "no keys"),
    "mask of other keys": ({"mask": (1, 1, 1, 5)}, "the last size of input mask is 5, expected 4"),
    "mask of other queries": ({"mask": (1, 1, 3, 4)}, "size 2 of input mask is 3, expected 1 or 4"),
    "mask of other heads": ({"mask": (1, 3, 1, 4)}, "size 1 of input mask is 3, expected 1 or 2"),
    "mask of other batch": ({"mask": (2, 1, 1, 4)}, "size 0 of input mask is 2, expected 1 or 1"),
}


@pytest.mark.parametrize(("shapes", "told"), BAD_ATTENTION.values(), ids=BAD_ATTENTION)
def test_attention_that_does_not_fit_is_an_error(shapes, told):
    sizes = {"query": (1, 4, 8), "key": (1, 4, 8), "value": (1, 4, 8), "mask": (1, 1, 1, 4)} | shapes
    with pytest.raises(Exception, match=told):
        session(attention(2)).run(None, {name: np.zeros(size, np.float32) for name, size in sizes.items()})


@pytest.mark.parametrize("heads", [0, -1, 1 << 40])
def test_heads_that_make_no_sense_are_an_error(heads):
    with pytest.raises(Exception, match="attribute heads is"):
        session(attention(heads))


@pytest.mark.parametrize("change", [{"b": (1, 2, 5)}, {"weight": (3,)}, {"bias": (5,)}])
def test_a_norm_that_does_not_fit_is_an_error(change):
    sizes = {"a": (1, 2, 4), "b": (1, 2, 4), "weight": (4,), "bias": (4,)} | change
    with pytest.raises(Exception, match="SlimResidualNorm: inputs"):
        session(norm()).run(None, {name: np.zeros(size, np.float32) for name, size in sizes.items()})


def test_a_negative_epsilon_is_an_error():
    with pytest.raises(Exception, match="attribute epsilon"):
        session(norm(-1.0))

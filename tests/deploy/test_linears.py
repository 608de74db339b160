"""Linears are found with all that belongs to them, in whatever way the exporter wrote it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimum_slim.deploy.export import export
from optimum_slim.deploy.linears import linears_in
from optimum_slim.tasks import task_named
from tests.tiny import mostly_slow, tiny

# Of three layers: what follows the linears, and how many have a bias.
FOUND = {
    "bert": ({"": 15 + 2, "Gelu": 3}, 20),
    "distilbert": ({"": 15 + 1, "Gelu": 3}, 19),
    "llama": ({"": 18 + 1, "Silu": 3}, 21),
    "qwen2": ({"": 18 + 1, "Silu": 3}, 9),
    "gpt2": ({"": 12 + 1}, 12),  # a Reshape stands between its products and activations
    "opt": ({"": 15 + 1, "Relu": 3}, 18),
}


@pytest.mark.parametrize("family", mostly_slow("bert", "llama", "gpt2", "opt", families=FOUND))
def test_every_linear_is_found_with_its_bias_and_activation(family, tmp_path):
    model = tiny(family)
    export(model, task_named("auto", model.config), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    found = list(linears_in(graph))
    activations, biases = FOUND[family]
    assert Counter(linear.activation for linear in found) == activations
    assert sum(linear.bias is not None for linear in found) == biases
    assert not {node.name for linear in found for node in linear.nodes if node.op_type == "Softmax"}


def small_graph(nodes, **stored):
    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [value("x", TensorProto.FLOAT, ["rows", 4])],
            [value("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in stored.items()],
        )
    )


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["p"], name="/linear/MatMul")
WEIGHT = np.ones((4, 6))


def test_an_activation_that_more_than_its_own_nodes_read_stays_outside():
    nodes = [PRODUCT, helper.make_node("Relu", ["p"], ["r"]), helper.make_node("Add", ["r", "p"], ["y"])]
    (linear,) = linears_in(small_graph(nodes, w=WEIGHT))
    assert (linear.activation, linear.output, len(linear.nodes)) == ("", "p", 1)


def test_a_bias_of_another_shape_is_none():
    nodes = [PRODUCT, helper.make_node("Add", ["p", "b"], ["y"])]
    (linear,) = linears_in(small_graph(nodes, w=WEIGHT, b=np.ones((2, 6))))
    assert (linear.bias, linear.output) == (None, "p")


def test_an_unknown_function_of_the_output_stays_outside():
    nodes = [PRODUCT, helper.make_node("Tanh", ["p"], ["t"]), helper.make_node("Mul", ["t", "t"], ["y"])]
    (linear,) = linears_in(small_graph(nodes, w=WEIGHT))
    assert (linear.activation, linear.output) == ("", "p")


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_tells_how_its_weight_lies(transposed):
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="/linear/Gemm", transB=transposed)
    (linear,) = linears_in(small_graph([node], w=WEIGHT.T if transposed else WEIGHT, b=np.ones(6)))
    assert (linear.transposed, linear.bias) == (not transposed, "b")


def test_a_gemm_that_scales_is_left_alone():
    node = helper.make_node("Gemm", ["x", "w"], ["y"], alpha=2.0)
    assert list(linears_in(small_graph([node], w=WEIGHT))) == []

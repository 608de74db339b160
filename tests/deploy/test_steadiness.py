"""What an answer depends on besides its text is measured, and overflowing products are found in the integers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from optimum_slim.deploy.export import export_folder
from optimum_slim.deploy.graph import quantized_rows
from optimum_slim.deploy.machine import session_options
from optimum_slim.deploy.precision import PRECISIONS, make_precisions
from optimum_slim.deploy.saturation import overflowing_pairs, products_in, saturates_here
from optimum_slim.deploy.steadiness import checked
from optimum_slim.kernels.library import library_path
from optimum_slim.kernels.packing import MIDDLE, turned
from optimum_slim.tasks import task_named
from tests.tiny import mostly_slow, options_of, tiny, tiny_tokenizer


@pytest.fixture(params=mostly_slow("bert", "gpt2"), scope="module")
def found(request, tmp_path_factory):
    """What is found in each precision of a tiny model."""
    root, model = tmp_path_factory.mktemp(request.param), tiny(request.param)
    kind = task_named("auto", model.config)
    source = export_folder(model, kind, root / "source")
    tiny_tokenizer(request.param).save_pretrained(source)
    made = make_precisions(source, root, {name: options_of(name) for name in PRECISIONS})
    return {name: checked(path, kind) for name, path in made.items()}


@pytest.mark.parametrize("precision", ["fp32", "int8-weights", "int8-rows"])
def test_an_answer_stays_the_same_in_any_company(found, precision):
    if precision == "int8-rows" and library_path() is None:
        pytest.skip("the kernels are not built here")
    for what in ("batch", "padding", "threads"):
        assert found[precision][what] < 1e-4, what


def test_one_scale_for_a_tensor_makes_answers_depend_on_their_batch_and_padding(found):
    assert found["int8-dynamic"]["batch"] > 1e-3
    assert found["int8-dynamic"]["padding"] > 1e-3
    assert found["int8-dynamic"]["threads"] < 1e-4


def test_files_of_ours_have_products_and_none_overflows(found):
    assert found["int8-dynamic"]["products"] > 10
    assert found["int8-rows"]["products"] > 10
    assert [row["saturating"] for row in found.values()] == [0] * len(found)


def test_pairs_overflow_where_weights_of_one_sign_add_up_to_more_than_128():
    weight = np.zeros((7, 6), np.int8)
    weight[:2] = [[64, 65, 127, -64, -65, -128], [64, 64, -127, -64, -64, 0]]
    assert overflowing_pairs(weight[:, :1]) == 0
    assert overflowing_pairs(weight) == 2  # 65 + 64, -65 - 64
    weight[1:3], weight[6] = 127, 127  # neighbours of two pairs, and one that has none
    assert overflowing_pairs(weight[1:]) == 6


K, N = 64, 32


def product(kind, weight, unsigned=True):
    """A model of one product with a stored weight, in each way that ONNX writes one."""
    x = np.array(0, np.uint8 if unsigned else np.int8)
    stored = {"w": weight, "one": np.float32(1), "x_zero": x, "w_zero": np.array(0, weight.dtype)}
    quantized = [helper.make_node("QuantizeLinear", ["x", "one", "x_zero"], ["q"])]
    nodes = {
        "MatMulInteger": [
            helper.make_node("MatMulInteger", ["q", "w", "x_zero", "w_zero"], ["i"], name="p"),
            helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
        "turned": [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMulInteger", ["q", "t", "x_zero", "w_zero"], ["i"], name="p"),
            helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
        "QDQ": [
            helper.make_node("DequantizeLinear", ["q", "one", "x_zero"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "one", "w_zero"], ["v"]),
            helper.make_node("MatMul", ["d", "v"], ["y"], name="p"),
        ],
    }[kind]
    if kind == "turned":
        stored["w"] = np.ascontiguousarray(weight.T)
    graph = helper.make_graph(
        quantized + nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", N])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("kind", "dtype", "unsigned", "overflows"),
    [
        ("MatMulInteger", np.int8, True, True),
        ("MatMulInteger", np.int8, False, False),
        ("MatMulInteger", np.uint8, True, False),
        ("turned", np.int8, True, True),
        ("QDQ", np.int8, True, True),
        ("QDQ", np.int8, False, True),  # ONNX Runtime makes these activations uint8
        ("QDQ", np.uint8, True, False),
    ],
)
def test_what_is_told_of_a_product_is_what_this_cpu_does(tmp_path, kind, dtype, unsigned, overflows):
    draw = np.random.default_rng(0)
    weight = draw.integers(90, 128, (K, N)).astype(dtype)
    onnx.save(product(kind, weight, unsigned), tmp_path / "model.onnx")
    (told,) = products_in(tmp_path / "model.onnx")
    assert (told.node, told.pairs > 0) == ("p", overflows)
    x = draw.integers(100, 256 if unsigned else 128, (5, K))
    (y,) = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), session_options(1)).run(
        None, {"x": x.astype(np.float32)}
    )
    exact = x @ weight.astype(np.int64)
    assert (np.abs(y - exact).max() > 0.01 * exact.max()) == (overflows and saturates_here())


def unsigned(graph):
    """The same numbers in uint8, whose products are exact everywhere."""
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "MatMulInteger":
            weight, zero_point = stored[node.input[1]], stored[node.input[3]]
            weight.CopyFrom(numpy_helper.from_array(turned(numpy_helper.to_array(weight)), weight.name))
            zero_point.CopyFrom(numpy_helper.from_array(np.array(MIDDLE, np.uint8), zero_point.name))
    return graph


def test_a_stock_file_of_full_range_really_answers_otherwise_here_and_ours_is_exact_in_int8(tmp_path):
    """Weights of one sign side by side: stored as quantize_dynamic does by default, as we do, and each in uint8."""
    model = tiny("bert")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("query.weight", "dense.weight")):
                weight.abs_()
    kind = task_named("auto", model.config)
    source = export_folder(model, kind, tmp_path / "source")
    paths = {name: tmp_path / f"{name}.onnx" for name in ("stock", "reduced", "ours")}
    quantize = {"op_types_to_quantize": ["MatMul", "Gemm"], "weight_type": QuantType.QInt8}
    quantize_dynamic(source / "model.onnx", paths["stock"], **quantize)
    quantize_dynamic(source / "model.onnx", paths["reduced"], reduce_range=True, **quantize)
    PRECISIONS["int8-dynamic"](onnx.load(source / "model.onnx"), paths["ours"])
    found = {name: [one for one in products_in(path) if one.pairs] for name, path in paths.items()}
    assert len(found["stock"]) >= 6
    assert found["reduced"] == found["ours"] == []
    feeds = {"input_ids": np.arange(5, 37)[None], "attention_mask": np.ones((1, 32), np.int64)}
    feeds["token_type_ids"] = np.zeros((1, 32), np.int64)
    for name, overflows in (("stock", saturates_here()), ("ours", False)):
        graph = onnx.load(paths[name])
        signed = [t.name for t in graph.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
        assert {node.input[1] for node in graph.graph.node if node.op_type == "MatMulInteger"} <= set(signed)
        told, right = (
            onnxruntime.InferenceSession(one.SerializeToString(), session_options(1)).run(None, feeds)[0]
            for one in (graph, unsigned(onnx.load(paths[name])))
        )
        assert (np.abs(told - right).max() > 1e-3 * np.abs(right).max()) == overflows


@given(hnp.arrays("float32", hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(-5000, 5000)))
def test_paired_rows_never_overflow_and_are_off_by_half_a_step_of_at_most_twice_the_scale(weight):
    _, plain = quantized_rows(weight)
    integers, scale = quantized_rows(weight, paired=True)
    assert overflowing_pairs(integers.T) == 0
    assert ((plain <= scale) & (scale <= plain * 2.0001)).all()
    assert (np.abs(integers * scale - weight) <= scale * 0.50001).all()

"""A static file holds the integers that training or calibration fixed, and ONNX Runtime multiplies just these."""

from __future__ import annotations

import copy
import statistics
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from transformers.pytorch_utils import Conv1D

from optimum_slim.deploy import benchmark
from optimum_slim.deploy.benchmark import Target
from optimum_slim.deploy.calibration import input_ranges
from optimum_slim.deploy.choose import Deploy, choose_precision, tried_by_auto
from optimum_slim.deploy.export import export_folder
from optimum_slim.deploy.integers import OnGrid, symmetric_integers, weights_on_grids
from optimum_slim.deploy.machine import session_options
from optimum_slim.deploy.names import module_path
from optimum_slim.deploy.precision import PRECISIONS, prepared
from optimum_slim.deploy.static import quantize_linears, static_linears, uncalibrated
from optimum_slim.deploy.verify import load_ort
from optimum_slim.deploy.wiring import attribute_of
from optimum_slim.errors import ModelError
from optimum_slim.kernels.joined import parted
from optimum_slim.kernels.packing import unpack
from optimum_slim.model.grids import Grid, grids_of
from optimum_slim.model.rounding import affine_scale
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.tasks import task_named
from optimum_slim.techniques.quantize.aware import QuantizeAware
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude
from optimum_slim.training.fake_quantize import fake_quantize, fake_quantize_weight
from tests.techniques.sparsify.passes import texts, trained
from tests.tiny import DECODERS, answers, mostly_slow, tiny, token_batches

SHOWN = ("bert", "llama", "gpt2")


@pytest.fixture(params=mostly_slow(*SHOWN), scope="module")
def made(request, tmp_path_factory):
    """A model that learnt to be rounded, and the folder of its export."""
    root = tmp_path_factory.mktemp(request.param)
    model = tiny(request.param)
    if not model.config.architectures[0].endswith("SequenceClassification"):
        technique = QuantizeAware(delay=0)
        technique.begin(model, None)
        for batch in token_batches():
            answers(model, batch)
        technique.ranges = dict(technique.seen)
        technique.end(model)
    else:
        trained(QuantizeAware(delay=0), texts(), root / "training", model=model, max_steps=4)
    return model, export_folder(model, task_named("auto", model.config), root / "fp32")


def deployed(made, tmp_path, precision="int8-static", **options):
    model, source = made
    grids = weights_on_grids(model)
    if precision == "int8-static":
        options["texts"] = token_batches()
    (tmp_path / precision).mkdir()
    model.config.save_pretrained(tmp_path / precision)
    target = tmp_path / precision / "model.onnx"
    PRECISIONS[precision](prepared(source / "model.onnx"), target, **({"grids": grids} | options))
    return target


def stored_in(path):
    graph = onnx.load(path)
    return graph, {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def weight_of(model, graph, node_name):
    """The torch name of the weight that a node of the graph computes with."""
    path = node_name.strip("/").rpartition("/")[0].replace("/", ".")
    return next((name for name in grids_of(model) if f".{name}".endswith(f".{path}.weight")), None)


def wanted_integers(model, name):
    return grids_of(model)[name].integers(name, model.get_parameter(name)).numpy()


def is_scale(name, stored, scale):
    """Equal, but for the factor 1 / sqrt(head size) that exports fold into queries."""
    return np.array_equal(*np.broadcast_arrays(stored, scale)) or (
        "q" in name.split(".")[-2] and np.array_equal(*np.broadcast_arrays(stored * 4, scale))
    )


def test_the_file_holds_the_integers_and_scales_of_the_grids(made, tmp_path):
    model, _ = made
    graph, stored = stored_in(deployed(made, tmp_path))
    makers = {output: node for node in graph.graph.node for output in node.output}
    found = set()
    for node in graph.graph.node:
        name = weight_of(model, graph, node.name) if node.op_type == "MatMul" else None
        if name is None or node.input[1] not in makers:
            continue
        x, weight, grid = makers[node.input[0]], makers[node.input[1]], grids_of(model)[name]
        assert x.op_type == weight.op_type == "DequantizeLinear"
        np.testing.assert_array_equal(stored[weight.input[0]].T, wanted_integers(model, name))
        assert stored[weight.input[0]].dtype == np.uint8
        assert is_scale(name, stored[weight.input[1]], grid.scale[:, 0].numpy())
        assert stored[x.input[1]] == grid.input_scale.numpy()
        assert stored[x.input[2]] == grid.input_zero_point.numpy()
        found.add(name)
    assert found == grids_of(model).keys()


@torch.no_grad()
def fake_quantized(made, tmp_path):
    """The torch model as training saw it at last, what enters linears rounded by their grids; besides, as the file has
    it, embeddings and a head that no grid tells of."""
    model = copy.deepcopy(made[0])
    graph = prepared(made[1] / "model.onnx")
    heads = [one for one in static_linears(graph) if weight_of(model, graph, one.name) is None]
    ranges = input_ranges(graph, [one.x for one in heads], token_batches(), "minmax")
    entering = {
        name.removesuffix(".weight"): (grid.input_scale, grid.input_zero_point.int())
        for name, grid in grids_of(model).items()
    }
    entering |= {module_path(one.nodes[0]): affine_scale(*map(torch.tensor, ranges[one.x])) for one in heads}
    of_heads = {
        id(weight): weight for weight in (model.get_submodule(module_path(one.nodes[0])).weight for one in heads)
    }
    for weight in of_heads.values():
        integers, scale = symmetric_integers(weight.numpy())
        weight.copy_(torch.from_numpy(integers * scale))
    for name, module in model.named_modules():
        large = isinstance(module, torch.nn.Embedding) and module.weight.numel() >= 4096
        if (large or name in entering) and id(module.weight) not in of_heads:
            axis = 1 if isinstance(module, Conv1D) else 0
            module.weight.copy_(fake_quantize_weight(module.weight, axis))
        if name in entering:
            module.register_forward_pre_hook(lambda _, x, grid=entering[name]: (fake_quantize(x[0], *grid),))
    return model


def test_the_loaded_file_answers_as_the_fake_quantized_torch_model(made, tmp_path):
    model = fake_quantized(made, tmp_path)
    served = load_ort(deployed(made, tmp_path).parent, task_named("auto", model.config))
    apart, rounding = [], []
    for batch in token_batches(tuple((1, tokens) for tokens in (8, 12, 20, 28, 40, 56, 64))):
        ours, plain, wanted = answers(served, batch), answers(made[0], batch), answers(model, batch)
        apart.append(float((ours - wanted).square().mean()))
        rounding.append(float((plain - wanted).square().mean()))
    # The last bit of a norm moves a single value to the next integer, in few texts.
    assert sum(apart) < sum(rounding) / 10
    assert statistics.median(apart) < 1e-6 * statistics.median(rounding)


def test_onnx_runtime_multiplies_the_integers_of_every_linear(made, tmp_path):
    model, _ = made
    path, options = deployed(made, tmp_path), session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options)
    graph = onnx.load(tmp_path / "optimized.onnx")
    static = len(static_linears(prepared(made[1] / "model.onnx")))
    assert Counter(node.op_type for node in graph.graph.node)["MatMulIntegerToFloat"] == static >= len(grids_of(model))
    large = {tensor.name for tensor in graph.graph.initializer if np.prod(tensor.dims) >= 1024}
    assert not [node.name for node in graph.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in large]


def test_linears_that_read_one_value_by_one_scale_share_its_integers(made, tmp_path):
    model, _ = made
    graph, _ = stored_in(deployed(made, tmp_path))
    steps = [node for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    static = len(static_linears(prepared(made[1] / "model.onnx")))
    assert len(steps) == len({(node.input[0]) for node in steps})
    assert len(steps) < static or model.config.model_type == "gpt2"


@pytest.mark.parametrize(
    ("precision", "options"), [("int8-rows", {}), ("int8-rows", {"group_size": 16}), ("int8-weights", {})]
)
def test_other_precisions_keep_the_integers_too(made, precision, options, tmp_path):
    model, _ = made
    graph, stored = stored_in(deployed(made, tmp_path, precision, **options))
    found = set()
    for node in (one for joined in graph.graph.node for one in parted(joined)):
        name = weight_of(model, graph, node.name)
        if name is None or not node.op_type.startswith(("SlimLinear", "MatMulNBits", "SlimMatMulNBits")):
            continue
        wanted, scale = wanted_integers(model, name), grids_of(model)[name].scale.numpy()
        outputs, inputs = wanted.shape
        if precision == "int8-rows":
            integers = unpack(stored[node.input[1]], stored[node.input[2]], outputs, inputs, "dense").astype(int) + 128
            scales = stored[node.input[3]]
        else:
            integers = stored[node.input[1]].reshape(outputs, -1)[:, :inputs]
            scales = stored[node.input[2]].reshape(outputs, -1)
        np.testing.assert_array_equal(integers, wanted)
        assert is_scale(name, scales, scale)
        found.add(name)
    assert found == grids_of(model).keys()


def test_zeros_run_sparse_with_the_integers_of_the_grid(tmp_path):
    model = tiny("bert")
    SparsifyMagnitude(ratio=0.5, pattern="4x1", targets=("ffn",)).apply(model)
    technique = QuantizeAware(targets=("ffn",))
    technique.begin(model, None)
    technique.end(model)
    source = export_folder(model, task_named("auto", model.config), tmp_path / "fp32")
    target = deployed((model, source), tmp_path, "int8-rows", patterns=sparsity_in(model.config))
    graph, stored = stored_in(target)
    sparse = [node for node in graph.graph.node if attribute_of(node, "pattern", b"") == b"4x1"]
    assert len(sparse) == 6
    for node in sparse:
        wanted = wanted_integers(model, weight_of(model, graph, node.name))
        integers = unpack(stored[node.input[1]], stored[node.input[2]], *wanted.shape, "4x1").astype(int) + 128
        np.testing.assert_array_equal(integers, wanted)
        assert stored[node.input[2]].size < 0.6 * wanted.size


def test_dynamic_int8_finds_the_same_integers(made, tmp_path):
    """Its scale is the largest weight's 127th part, which is the grid's."""
    model, source = made
    PRECISIONS["int8-dynamic"](prepared(source / "model.onnx"), tmp_path / "model.onnx")
    graph, stored = stored_in(tmp_path / "model.onnx")
    found = set()
    for node in (one for one in graph.graph.node if one.op_type == "MatMulInteger"):
        name = weight_of(model, graph, node.name.replace("_quant", ""))
        if name is not None:
            np.testing.assert_array_equal(stored[node.input[1]].T, wanted_integers(model, name))
            found.add(name)
    assert found == grids_of(model).keys()


@pytest.mark.parametrize("precision", ["int8-static", "int8-rows", "int8-weights", "fp32"])
def test_a_weight_that_left_its_grid_is_not_deployed(precision, tmp_path):
    model = tiny("bert")
    technique = QuantizeAware(delay=0)
    technique.begin(model, None)
    answers(model, token_batches()[0])
    technique.end(model)
    name = next(iter(grids_of(model)))
    with torch.no_grad():
        model.get_parameter(name)[0, 0] += 1e-4
    source = export_folder(model, task_named("auto", model.config), tmp_path / "fp32")
    with pytest.raises(ModelError, match=r"query\.weight is not on the grid"):
        choose_precision(model, source, tmp_path, Deploy(precision), None, False, token_batches)
    if precision != "fp32":
        with pytest.raises(ModelError, match="is not on the grid"):
            deployed((model, source), tmp_path, precision)


def test_auto_tries_static_int8_only_where_training_learnt_the_ranges():
    one = torch.ones(1, 1)
    learnt, unknown = (
        OnGrid(Grid(one, one, input_scale=torch.tensor(1.0)), one.numpy()),
        OnGrid(Grid(one, one), one.numpy()),
    )
    assert "int8-static" in tried_by_auto({"a": learnt}, texts=True)
    assert "int8-static" not in tried_by_auto({"a": learnt}, texts=False)
    assert "int8-static" not in tried_by_auto({}, texts=True)
    assert "int8-static" not in tried_by_auto({"a": unknown}, texts=True)
    assert set(tried_by_auto({"a": learnt}, texts=True)) == set(PRECISIONS)


def test_auto_makes_and_judges_it_beside_the_others(made, tmp_path, monkeypatch):
    model, source = made
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    causal = model.config.model_type in DECODERS
    deploy = Deploy(target=Target([16]), calibration_method="percentile")
    chosen = choose_precision(model, source, tmp_path, deploy, None, causal, token_batches)
    assert chosen.decided["precision"] == chosen.folder.name
    assert all((tmp_path / name / "model.onnx").exists() for name in PRECISIONS)


def test_only_what_no_grid_tells_is_calibrated(made):
    model, source = made
    linears = static_linears(prepared(source / "model.onnx"))
    lacking = uncalibrated(linears, weights_on_grids(model))
    inside = {one.x for one in linears if weight_of(model, None, one.name)}
    assert set(lacking) == {one.x for one in linears if weight_of(model, None, one.name) is None}
    assert uncalibrated(linears, {}) == list(dict.fromkeys(one.x for one in linears))
    assert inside


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_no_product_overflows_however_large_its_integers(operator, rows):
    """All weights and activations at their ends: sums of pairs that do not fit 16 bits, as they do without VNNI."""
    inputs, outputs = 512, 48
    signs = np.where(np.arange(outputs) % 2, 1, -1).astype(np.float32)
    weight = np.tile(127 * signs, (inputs, 1)) * np.float32(0.01)
    x = np.full((rows, inputs), 255, np.float32) * np.float32(0.02)
    bias = np.arange(outputs, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w", "b"] if operator == "Gemm" else ["x", "w"], ["y"], name="/a/Product")],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    quantize_linears(model, static_linears(model), {}, {"x": (0.0, 5.1)})
    (found,) = onnxruntime.InferenceSession(model.SerializeToString(), session_options(1)).run(None, {"x": x})
    wanted = x @ weight + (bias if operator == "Gemm" else 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)

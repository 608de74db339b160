"""Every precision stores each weight once, leaves no float product with a stored weight, and answers nearly as fp32."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch

from optimum_slim.deploy.export import export
from optimum_slim.deploy.graph import quantized_rows
from optimum_slim.deploy.integers import symmetric_integers
from optimum_slim.deploy.lowering import SMALLEST
from optimum_slim.deploy.precision import PRECISIONS, prepared
from optimum_slim.deploy.verify import load_ort
from optimum_slim.tasks import task_named
from tests.tiny import DECODERS, answers, mostly_slow, options_of, tiny, token_batches

QUANTIZED = ("int8-dynamic", "int8-static", "int8-rows", "int8-weights", "int4-weights")
WHOLE = ("int8-dynamic", "int8-weights", "int4-weights")  # also linears of fewer than `SMALLEST` weights
SHOWN = ("bert", "roberta", "llama", "gpt2")
VOCABULARY = 2000  # large enough to be most of the model


@pytest.fixture(params=mostly_slow(*SHOWN), scope="module")
def deployed(request, tmp_path_factory):
    """A torch model with tied embeddings, and its folder of each precision."""
    model = tiny(request.param, vocab_size=VOCABULARY, tie_word_embeddings=True)
    folder, task = tmp_path_factory.mktemp(request.param), task_named("auto", model.config)
    export(model, task, folder / "model.onnx")
    for name, make in PRECISIONS.items():
        (folder / name).mkdir()
        model.config.save_pretrained(folder / name)
        make(prepared(folder / "model.onnx"), folder / name / "model.onnx", **options_of(name))
    return model, {name: folder / name for name in PRECISIONS}


def stored_bytes(graph):
    """Of the initializers that matter: an export is full of small constants."""
    sizes = [math.prod(t.dims) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in weights_of(graph)]
    return sum(sizes)


def weights_of(graph):
    return [tensor for tensor in graph.graph.initializer if math.prod(tensor.dims) >= 64]


def of_weights(graph, *operators):
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    return [
        stored[name] for node in graph.graph.node if node.op_type in operators for name in node.input if name in stored
    ]


@pytest.mark.parametrize(
    ("precision", "share"),
    [
        ("fp32", 4.0),
        ("int8-dynamic", 1.0),
        ("int8-static", 1.01),
        ("int8-rows", 1.01),
        ("int8-weights", 1.125),
        ("int4-weights", 0.625),
    ],
)
def test_every_weight_is_stored_once(deployed, precision, share):
    model, folders = deployed
    parameters = sum(parameter.numel() for parameter in model.parameters())
    small = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    graph = onnx.load(folders[precision] / "model.onnx")
    rows = sum(p.shape[0] + p.shape[1] for p in model.parameters() if p.ndim == 2)  # a scale each, at most
    limit = share * parameters + 4 * small + (0 if precision == "fp32" else 4 * rows)
    assert stored_bytes(graph) <= 1.05 * limit + 4 * 128 * 128  # a causal mask, or position numbers


@pytest.mark.parametrize("precision", QUANTIZED)
def test_no_weight_is_multiplied_as_floats(deployed, precision):
    _, folders = deployed
    graph = onnx.load(folders[precision] / "model.onnx")
    floats = [t for t in of_weights(graph, "MatMul", "Gemm") if t.data_type == onnx.TensorProto.FLOAT]
    assert [t.name for t in floats if math.prod(t.dims) >= SMALLEST or precision in WHOLE] == []
    tables = [t.name for t in of_weights(graph, "Gather") if t.data_type == onnx.TensorProto.FLOAT and t.dims[-1] > 1]
    assert [name for name in tables if "type" not in name] == []  # two token types are not worth a scale


@pytest.mark.parametrize(
    ("precision", "cosine"),
    [
        ("fp32", 0.999999),
        ("int8-dynamic", 0.99),
        ("int8-static", 0.99),
        ("int8-rows", 0.99),
        ("int8-weights", 0.99),
        ("int4-weights", 0.5),
    ],
)
def test_answers_stay_close(deployed, precision, cosine):
    model, folders = deployed
    ort = load_ort(folders[precision], task_named("auto", model.config))
    for batch in token_batches(((1, 20), (1, 60), (3, 16))):
        wanted, found = answers(model, batch), answers(ort, batch)
        assert wanted.shape == found.shape
        # A whole batch at a time: two logits point the other way as soon as both are near zero.
        assert torch.cosine_similarity(wanted.flatten(), found.flatten(), dim=0) > cosine


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nodes_stand_behind_what_they_read(deployed, precision):
    graph = onnx.load(deployed[1][precision] / "model.onnx").graph
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        assert set(node.input) <= known, node.name
        known.update(node.output)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_residuals_are_sums_before_a_layer_norm(deployed, precision):
    _, folders = deployed
    graph = onnx.load(folders[precision] / "model.onnx")
    constants = {tensor.name for tensor in graph.graph.initializer}
    producers = {output: node for node in graph.graph.node for output in node.output}
    for norm in (node for node in graph.graph.node if node.op_type == "LayerNormalization"):
        before = producers.get(norm.input[0])
        assert before is None or before.op_type != "Add" or constants & set(before.input), norm.name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("deployed", mostly_slow(*SHOWN, families=DECODERS), indirect=True)
def test_decoders_still_generate(deployed, precision):
    model, folders = deployed
    ort = load_ort(folders[precision], task_named("auto", model.config))
    (batch,) = token_batches(((2, 8),), padding="left")
    found = ort.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert found.shape == (2, 14)
    if precision == "fp32":
        assert torch.equal(found, model.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False))


def left_high(model):
    """A linear, the head or what comes nearest to it, and the embedding: by torch name."""
    matrices = [name for name, p in model.named_parameters(remove_duplicate=False) if p.ndim == 2 and p.numel() > 2048]
    linears = [name for name in matrices if "pooler" not in name]  # which embeddings are not read from
    table = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
    return {linears[-2], linears[-1], f"{table}.weight"}


@pytest.mark.parametrize("precision", QUANTIZED)
def test_weights_that_are_left_high_stay_floats_and_others_do_not(deployed, tmp_path, precision):
    model, folders = deployed
    high = left_high(model)
    graph, options = prepared(folders[precision].parent / "model.onnx"), options_of(precision)
    PRECISIONS[precision](graph, tmp_path / "model.onnx", high=high, **options)
    model.config.save_pretrained(tmp_path)
    graph = onnx.load(tmp_path / "model.onnx")
    stored = {t.name: t for t in graph.graph.initializer}
    floats = [
        np.asarray(onnx.numpy_helper.to_array(stored[name]))
        for node in graph.graph.node
        if node.op_type in ("MatMul", "Gemm", "Gather")
        for name in node.input[:2]
        if name in stored and stored[name].data_type == onnx.TensorProto.FLOAT
    ]
    large = [values for values in floats if values.size > 2048]
    assert len(large) == len(high)
    for name in high:
        weight = model.get_parameter(name).detach().numpy()
        same = [np.allclose(v, w) for v in large for w in (weight, weight.T) if v.shape == w.shape]
        assert any(same), name
    (batch,) = token_batches(((3, 16),))
    ort = load_ort(tmp_path, task_named("auto", model.config))
    wanted, found = answers(model, batch), answers(ort, batch)
    assert torch.cosine_similarity(wanted.flatten(), found.flatten(), dim=0) > (0.5 if "int4" in precision else 0.99)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_with_every_weight_left_high_the_answers_are_those_of_floats(deployed, tmp_path, precision):
    model, folders = deployed
    high = [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.ndim == 2]
    graph, options = prepared(folders[precision].parent / "model.onnx"), options_of(precision)
    PRECISIONS[precision](graph, tmp_path / "model.onnx", high=high, **options)
    model.config.save_pretrained(tmp_path)
    (batch,) = token_batches(((3, 16),))
    ort = load_ort(tmp_path, task_named("auto", model.config))
    torch.testing.assert_close(answers(ort, batch), answers(model, batch), atol=1e-4, rtol=1e-4)


def test_int8_embeddings_are_off_by_at_most_half_a_step_of_their_row(deployed):
    model, folders = deployed
    graph = onnx.load(folders["int8-dynamic"] / "model.onnx")
    table = model.get_input_embeddings().weight.detach().numpy()
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    (name,) = [key.removesuffix(".integers") for key, value in stored.items() if value.shape == table.shape]
    integers, scale = stored[f"{name}.integers"], stored[f"{name}.scale"]
    if integers.dtype == np.uint8:
        integers = integers.astype(np.float32) - 128
    assert (np.abs(integers * scale - table) <= scale * 0.5001).all()
    tied = any(node.op_type == "Transpose" and node.input[0] == f"{name}.integers" for node in graph.graph.node)
    wanted = symmetric_integers(table)[1] if tied else quantized_rows(table)[1]
    np.testing.assert_array_equal(scale, wanted)

"""A file of 4- or 8-bit blocks holds the integers of the grids unchanged, and answers as the torch model on them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from optimum_slim.deploy.blocks import block_bytes, block_of, block_tensors
from optimum_slim.deploy.choose import stores, tried_by_auto
from optimum_slim.deploy.export import export_folder
from optimum_slim.deploy.integers import OnGrid, weights_on_grids
from optimum_slim.deploy.names import weight_of
from optimum_slim.deploy.parts import layer_rows
from optimum_slim.deploy.precision import PRECISIONS, prepared
from optimum_slim.deploy.verify import load_ort
from optimum_slim.deploy.wiring import attribute_of
from optimum_slim.errors import ModelError
from optimum_slim.kernels.blocked import BLOCKED_OPERATORS, STOCK
from optimum_slim.kernels.joined import parted
from optimum_slim.model.grids import Grid, grids_of
from optimum_slim.tasks import TextGeneration, task_named
from optimum_slim.techniques.quantize.weights import QuantizeWeights
from tests.tiny import answers, tiny, token_batches

# Settings, and the family; 64 inputs are no multiple of 48 or 96, whose last groups are smaller.
CASES = [
    ({"bits": 4}, "llama"),
    ({"bits": 4, "symmetric": False, "group_size": 16}, "qwen2"),
    ({"bits": 4, "group_size": 96}, "gpt2"),
    ({"bits": 8, "symmetric": False, "group_size": 48}, "llama"),
    ({"bits": 4, "group_size": None}, "bert"),
    ({"bits": 8, "group_size": 128}, "opt"),
]


def unpacked(values, bits, columns):
    """Integers [rows, columns] from bytes."""
    flat = values.reshape(len(values), -1)
    if bits == 4:
        flat = np.stack([flat & 15, flat >> 4], 2).reshape(len(values), -1)
    return flat[:, :columns]


def run_node(node, inputs, stored):
    """What one node of ONNX Runtime makes of its inputs."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape) for name, value in inputs.items()],
        [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]


@pytest.fixture(scope="module", params=CASES, ids=str)
def made(request, tmp_path_factory):
    """A model on grids, and the folder of its export."""
    settings, family = request.param
    model = tiny(family, vocab_size=256, tie_word_embeddings=True)
    QuantizeWeights(method="rtn", **settings).apply(model)
    return model, export_folder(model, task_named("auto", model.config), tmp_path_factory.mktemp("made"))


def deployed(made, folder, precision, **options):
    model, source = made
    model.config.save_pretrained(folder)
    grids = {"grids": weights_on_grids(model)}
    PRECISIONS[precision](prepared(source / "model.onnx"), folder / "model.onnx", **(grids | options))
    return onnx.load(folder / "model.onnx")


@pytest.mark.parametrize("precision", ["int4-weights", "int8-weights"])
def test_the_file_holds_the_integers_scales_and_zero_points_of_the_grids(made, precision, tmp_path):
    model, _ = made
    graph = deployed(made, tmp_path, precision)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    grids, found = grids_of(model), set()
    for node in (one for joined in graph.graph.node for one in parted(joined)):
        name = weight_of(node, grids)
        if node.op_type not in (STOCK, *BLOCKED_OPERATORS) or name is None:
            continue
        grid, wanted = grids[name], grids[name].integers(name, model.get_parameter(name)).numpy()
        bits, block = attribute_of(node, "bits", None), attribute_of(node, "block_size", None)
        assert bits == grid.bits
        values, scales, *zeros = (stored[name] for name in node.input if name in stored)
        np.testing.assert_array_equal(unpacked(values, bits, wanted.shape[1]), wanted)
        scale, zero_point = (grid.spread(one, wanted.shape[1]).numpy() for one in (grid.scale, grid.zero_point))
        blocks = -(-wanted.shape[1] // block)
        scales = np.repeat(scales.reshape(len(wanted), -1), block, 1)[:, : wanted.shape[1]]
        factor = scales[0, 0] / scale[0, 0]  # exports fold 1 / sqrt(head size) into queries
        assert factor in (1, 0.25)
        np.testing.assert_array_equal(scales, scale * factor)
        found_zeros = np.full(wanted.shape, 2 ** (bits - 1))
        if zeros:
            found_zeros = np.repeat(unpacked(zeros[0], bits, blocks), block, 1)[:, : wanted.shape[1]]
        np.testing.assert_array_equal(found_zeros, zero_point)
        assert bool(zeros) == bool((grid.zero_point != 2 ** (bits - 1)).any())
        found.add(name)
    assert found == grids.keys()


def test_onnx_runtime_answers_as_the_torch_model_on_the_grids(made, tmp_path):
    """But for embeddings and heads, which no grid tells of: they stay floats here. Level 1 rounds no activation."""
    model, _ = made
    left = [name for name, p in model.named_parameters(remove_duplicate=False) if p.ndim == 2]
    high = [name for name in left if name not in grids_of(model)]
    deployed(made, tmp_path, "int4-weights", high=high, accuracy_level=1)
    served = load_ort(tmp_path, task_named("auto", model.config))
    for batch in token_batches():
        wanted = answers(model, batch)
        assert (answers(served, batch) - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_rounded_activations_change_answers_little(made, tmp_path):
    model, _ = made
    deployed(made, tmp_path, "int8-weights")
    served = load_ort(tmp_path, task_named("auto", model.config))
    for batch in token_batches():
        wanted, found = answers(model, batch), answers(served, batch)
        assert torch.cosine_similarity(wanted.flatten(), found.flatten(), dim=0) > 0.99


@pytest.mark.parametrize(("precision", "bits"), [("int4-weights", 4), ("int8-weights", 8)])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_the_embedding_and_its_head_are_one_initializer(family, precision, bits, tmp_path):
    model = tiny(family, vocab_size=256, tie_word_embeddings=True)
    made = model, export_folder(model, task_named("auto", model.config), tmp_path / "fp32")
    graph = deployed(made, tmp_path, precision)
    (gather,) = [node for node in graph.graph.node if node.op_type == "GatherBlockQuantized"]
    (head,) = [
        n
        for n in graph.graph.node
        if n.op_type in (STOCK, *BLOCKED_OPERATORS) and attribute_of(n, "N", 0) == model.config.vocab_size
    ]
    (reshape,) = [node for node in graph.graph.node if gather.input[0] in node.output]
    assert reshape.input[0] == head.input[1]
    assert gather.input[2] == head.input[2]
    assert attribute_of(gather, "bits", None) == attribute_of(head, "bits", None) == bits
    tables = [t for t in graph.graph.initializer if np.prod(t.dims) >= 256 * 64 / 2 and t.dims[0] == 256]
    assert [tensor.name for tensor in tables] == [head.input[1]]
    served = load_ort(tmp_path, task_named("auto", model.config))
    (batch,) = token_batches(((2, 8),), padding="left")
    assert served.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (2, 12)


@torch.no_grad()
@pytest.mark.parametrize(("family", "close"), [("qwen2", 1e-4), ("gpt2", 0.05)])  # gpt2's positions have 8 bits
def test_it_generates_what_torch_does_with_the_weights_of_the_file(family, close, tmp_path):
    """Nothing stands on a grid here: every weight is read back from the file, the shared embedding with its head."""
    model = tiny(family, vocab_size=256, tie_word_embeddings=True)
    source = export_folder(model, TextGeneration, tmp_path / "fp32")
    graph = deployed((model, source), tmp_path, "int4-weights", accuracy_level=1)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    names = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.ndim == 2}
    for node in (one for one in graph.graph.node if one.op_type in (STOCK, *BLOCKED_OPERATORS)):
        name, inputs = weight_of(node, names), attribute_of(node, "K", 0)
        scales = np.repeat(stored[node.input[2]].reshape(attribute_of(node, "N", 0), -1), 32, 1)[:, :inputs]
        rows = torch.from_numpy((unpacked(stored[node.input[1]], 4, inputs).astype(np.float32) - 8) * scales)
        names[name].copy_(rows.T if "c_" in name else rows)
    served = load_ort(tmp_path, TextGeneration)
    for batch in token_batches():
        wanted = answers(model, batch)
        assert (answers(served, batch) - wanted).abs().max() < close * wanted.abs().max()
    (batch,) = token_batches(((2, 8),), padding="left")
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    assert torch.equal(served.generate(**batch, **settings), model.generate(**batch, **settings))


def test_the_report_tells_how_layers_are_stored(tmp_path):
    model = tiny("llama")
    QuantizeWeights(method="rtn", targets=("ffn",)).apply(model)
    made = model, export_folder(model, task_named("auto", model.config), tmp_path / "fp32")
    for precision, stored in (("int8-weights", "8-bit blocks, 4-bit blocks"), ("int4-weights", "4-bit blocks")):
        deployed(made, tmp_path, precision)
        assert {row["stored"] for row in layer_rows(tmp_path / "model.onnx")} == {stored}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("inputs", "group"), [(64, 16), (70, 32), (40, 48), (33, None), (300, 256), (600, 512)])
def test_the_product_is_that_of_the_weights_which_the_integers_stand_for(bits, inputs, group):
    draw = np.random.default_rng(0)
    groups = -(-inputs // (group or inputs))
    integers = draw.integers(0, 2**bits, (7, inputs), np.uint8)
    scale = draw.normal(0, 1, (7, groups)).astype(np.float32)
    zero_point = draw.integers(0, 2**bits, (7, groups), np.uint8)
    tensors = block_tensors(integers, scale, zero_point, group, bits)
    assert len(tensors) == 3
    x = draw.normal(0, 1, (3, inputs)).astype(np.float32)
    names = ["weight", "scales", "zero_points"]
    block = block_of(group)
    node = helper.make_node(
        "MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", K=inputs, N=7, bits=bits, block_size=block
    )
    found = run_node(node, {"x": x}, dict(zip(names, tensors, strict=True)))
    grid = Grid(torch.from_numpy(scale), torch.from_numpy(zero_point), bits, group)
    wanted = x @ grid.floats(torch.from_numpy(integers)).numpy().T
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def test_groups_that_no_block_divides_are_a_model_error():
    assert [block_of(size) for size in (None, 16, 48, 96, 128, 512, 576)] == [32, 16, 16, 32, 128, 256, 64]
    with pytest.raises(ModelError, match="groups of 24 inputs cannot be stored in blocks: multiples of 16 can"):
        block_of(24)


def test_bytes_of_blocks_are_foretold():
    assert block_bytes(6400, {"bits": 4}) == 3200 + 800
    assert block_bytes(6400, {"bits": 8, "group_size": 128}) == 6400 + 200


def test_auto_tries_only_what_keeps_the_integers():
    one = torch.ones(1, 1)
    grouped = OnGrid(Grid(one, one, bits=4, group_size=32), one.numpy())
    assert tried_by_auto({"a": grouped}, texts=True) == ["fp32", "int8-weights", "int4-weights"]
    assert [name for name in PRECISIONS if stores(name, 4, None)] == [
        name for name in PRECISIONS if name != "int8-dynamic"
    ]
    assert all(stores(name, 8, None) for name in PRECISIONS)

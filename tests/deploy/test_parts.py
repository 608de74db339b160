"""Each byte of a file is of one part, and the layers of the file are the layers of the model."""

import onnx
import pytest

from optimum_slim.deploy.baseline import optimum_int8
from optimum_slim.deploy.export import export, onnx_bytes
from optimum_slim.deploy.parts import file_parts, layer_rows
from optimum_slim.deploy.precision import PRECISIONS, prepared
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.shape import BlockShape
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.model.surgery import keep_heads, keep_neurons
from optimum_slim.report.report import parameters_of
from optimum_slim.tasks import task_named
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude
from tests.tiny import mostly_slow, tiny, token_batches

SHOWN = ("bert", "llama", "qwen2", "gpt2")  # qwen2's and gpt2's heads read their embeddings
STORED = {
    "fp32": "fp32",
    "int8-dynamic": "int8",
    "int8-static": "int8 static",
    "int8-rows": "int8",
    "int8-weights": "8-bit blocks",
    "int4-weights": "4-bit blocks",
}


def uneven(family):
    """Three layers of another size each."""
    model = tiny(family)
    keep_neurons(model, 0, range(96))
    keep_heads(model, 2, [2, 3])
    return model


@pytest.fixture(params=mostly_slow(*SHOWN), scope="module")
def made(request, tmp_path_factory):
    """The model and a folder of its file for each precision."""
    root, model = tmp_path_factory.mktemp(request.param), uneven(request.param)
    source = root / "source"
    export(model, task_named("auto", model.config), source / "model.onnx")
    model.config.save_pretrained(source)
    for name, make in PRECISIONS.items():
        model.config.save_pretrained(root / name)
        options = {"texts": token_batches()} if name == "int8-static" else {}
        make(prepared(source / "model.onnx"), root / name / "model.onnx", **options)
    optimum_int8(source, root / "optimum")
    return model, root


def parts_of(path):
    return {row["part"]: row["bytes"] for row in file_parts(path)}


@pytest.mark.parametrize("name", ["source", *PRECISIONS, "optimum"])
def test_the_parts_add_up_to_the_file_and_none_is_unknown(made, name):
    path = made[1] / name / "model.onnx"
    parts = parts_of(path)
    assert sum(parts.values()) == path.stat().st_size
    assert {"embeddings", "attention", "feed-forward", "norms", "graph"} <= parts.keys()
    assert "other weights" not in parts


@pytest.mark.parametrize(("name", "stored"), STORED.items())
def test_layer_rows_match_the_shape_of_the_model(made, name, stored):
    model, root = made
    rows = layer_rows(root / name / "model.onnx")
    assert [row["layer"] for row in rows] == [0, 1, 2]
    grouped = model.config.model_type in ("llama", "mistral", "qwen2", "qwen3")
    shapes = [BlockShape(row["heads"], row["kv_heads"], row["ffn"]) for row in rows]
    assert shapes == [BlockShape(4, 2 if grouped else 4, 96), BlockShape(4, 2 if grouped else 4, 128),
                      BlockShape(2, 1 if grouped else 2, 128)]  # fmt: skip
    assert [row["parameters"] for row in rows] == [parameters_of(block.module) for block in blocks_of(model)]
    assert {row["stored"] for row in rows} == {stored}


def test_layer_rows_tell_which_zeros_bring_something(tmp_path):
    model = tiny("bert")
    SparsifyMagnitude(ratio=0.5, pattern="4x2", targets=["ffn"]).apply(model)
    export(model, task_named("auto", model.config), tmp_path / "model.onnx")
    model.config.save_pretrained(tmp_path)
    patterns = sparsity_in(model.config) | {"bert.encoder.layer.1.intermediate.dense.weight": "dense"}
    PRECISIONS["int8-rows"](prepared(tmp_path / "model.onnx"), tmp_path / "model.onnx", None, patterns)
    assert [row["stored"] for row in layer_rows(tmp_path / "model.onnx")] == [
        "int8, int8 4x2",
        "int8, int8 (4x2 zeros without gain), int8 4x2",
        "int8, int8 4x2",
    ]


def test_an_fp32_part_has_four_bytes_for_each_of_its_parameters(made):
    model, root = made
    parts, names = parts_of(root / "fp32" / "model.onnx"), 100  # bytes of a tensor's name and sizes, at most
    blocks = list(blocks_of(model))
    for part, modules in (
        ("attention", [one for block in blocks for one in (*block.projections, block.output)]),
        ("feed-forward", [one for block in blocks for one in (*block.ffn_in, block.ffn_out)]),
    ):
        weights = [parameter for module in modules for parameter in module.parameters()]
        values = 4 * sum(weight.numel() for weight in weights)
        assert values <= parts[part] <= values + names * len(weights)


def test_layers_hold_the_bytes_of_their_attention_feed_forward_and_norms(made):
    path = made[1] / "int8-dynamic" / "model.onnx"
    parts, layers = parts_of(path), sum(row["bytes"] for row in layer_rows(path))
    inside = parts["attention"] + parts["feed-forward"]
    assert inside < layers <= inside + parts["norms"]


def test_a_head_that_reads_its_embedding_takes_nothing_more(tmp_path):
    model = tiny("qwen2")
    export(model, task_named("auto", model.config), tmp_path / "export.onnx")
    model.config.save_pretrained(tmp_path)
    PRECISIONS["int8-weights"](prepared(tmp_path / "export.onnx"), tmp_path / "model.onnx")
    assert "head" not in parts_of(tmp_path / "model.onnx")
    assert parts_of(tmp_path / "export.onnx")["head"] > 4 * 128 * 64


def test_weights_in_external_data_count(made, tmp_path):
    model, root = made
    model.config.save_pretrained(tmp_path)
    graph = onnx.load(root / "fp32" / "model.onnx")
    onnx.save(
        graph, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=1024
    )
    within, outside = parts_of(root / "fp32" / "model.onnx"), parts_of(tmp_path / "model.onnx")
    assert sum(outside.values()) == onnx_bytes(tmp_path / "model.onnx")
    for part in ("embeddings", "attention", "feed-forward"):
        assert within[part] <= outside[part] <= 1.05 * within[part]

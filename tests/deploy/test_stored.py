"""Weights beside an ONNX file are read when they are asked for, and written one after the other."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimum_slim.deploy import stored
from optimum_slim.deploy.stored import array_of, bring_in, is_large, read_graph, save_onnx
from optimum_slim.errors import ModelError

WEIGHT = np.arange(64 * 96, dtype=np.float32).reshape(64, 96)
OTHERS = {
    "integers": np.arange(4096, dtype=np.uint8),
    "small": np.array([1.5, 2.5], np.float32),
    "one": np.array(-1, np.int64),
    "none": np.empty((0, 3), np.float32),
}


def graph_of(**tensors):
    """A product with `weight`, and tensors that nothing reads."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"], name="/product")],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 96])],
        [numpy_helper.from_array(value, name) for name, value in ({"weight": WEIGHT} | OTHERS | tensors).items()],
        doc_string="kept",
    )
    graph = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], producer_name="tests")
    helper.set_model_props(graph, {"key": "value"})
    return graph


def arrays(graph):
    return {tensor.name: array_of(tensor) for tensor in graph.graph.initializer}


def same(graph, other):
    found, wanted = arrays(graph), arrays(other)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert np.array_equal(found[name], value), name


@pytest.fixture(params=["whole", "beside"])
def saved(request, tmp_path, monkeypatch):
    if request.param == "beside":
        monkeypatch.setattr(stored, "EXTERNAL_DATA_BYTES", 2**10)
    path = tmp_path / "model.onnx"
    save_onnx(graph_of(), path)
    assert path.with_name("model.onnx_data").exists() == (request.param == "beside")
    return path


def test_onnx_reads_what_was_written(saved):
    read = onnx.load(saved)
    for tensor in read.graph.initializer:
        tensor.ClearField("data_location")  # which loading notes
    assert read == graph_of()
    onnx.checker.check_model(str(saved))


def test_onnxruntime_runs_it(saved):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(saved))
    x = np.ones((2, 64), np.float32)
    assert np.allclose(session.run(None, {"x": x})[0], x @ WEIGHT)


def test_read_written_and_brought_in_it_stays_the_same(saved, tmp_path):
    graph = read_graph(saved)
    same(graph, graph_of())
    save_onnx(graph, tmp_path / "again.onnx")
    same(read_graph(tmp_path / "again.onnx"), graph_of())
    assert (tmp_path / "again.onnx_data").exists() == is_large(graph)
    bring_in(graph)
    assert graph == graph_of()


def test_a_file_may_be_written_over_itself(saved):
    graph = read_graph(saved)
    graph.graph.initializer.append(numpy_helper.from_array(WEIGHT, "more"))
    save_onnx(graph, saved)
    same(read_graph(saved), graph_of(more=WEIGHT))


def test_smaller_than_before_it_leaves_no_data_behind(saved, monkeypatch):
    graph = read_graph(saved)
    monkeypatch.setattr(stored, "EXTERNAL_DATA_BYTES", 2**30)
    save_onnx(graph, saved)
    assert [file.name for file in saved.parent.iterdir()] == ["model.onnx"]
    same(read_graph(saved), graph_of())


def test_weights_on_the_disk_are_not_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "EXTERNAL_DATA_BYTES", 2**10)
    save_onnx(graph_of(), tmp_path / "model.onnx")
    (weight,) = [t for t in read_graph(tmp_path / "model.onnx").graph.initializer if t.name == "weight"]
    assert not weight.raw_data
    with pytest.raises(ValueError, match="read-only"):
        array_of(weight)[0] = 1


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("location", "../secret", "no file in this folder"),
        ("location", "/etc/passwd", "no file in this folder"),
        ("location", "missing", "no file in this folder"),
        ("location", ".", "no file in this folder"),
        ("offset", "10000000", "not whole"),
        ("offset", "-4096", "not whole"),
        ("offset", "many", "not whole"),
        ("length", "12", "not whole"),
    ],
)
def test_weights_elsewhere_or_cut_off_are_an_error(key, value, told, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "EXTERNAL_DATA_BYTES", 2**10)
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(2**16))
    save_onnx(graph_of(), folder / "model.onnx")
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    for entry in graph.graph.initializer[0].external_data:
        entry.value = value if entry.key == key else entry.value
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(ModelError, match=told):
        read_graph(folder / "model.onnx")

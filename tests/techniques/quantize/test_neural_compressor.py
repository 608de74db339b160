"""What neural-compressor rounded is taken over as it is: its integers stand in the ONNX file unchanged."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from optimum_slim.deploy.export import export_folder
from optimum_slim.deploy.integers import weights_on_grids
from optimum_slim.deploy.names import weight_of
from optimum_slim.deploy.precision import PRECISIONS, prepared
from optimum_slim.deploy.verify import load_ort
from optimum_slim.kernels.blocked import BLOCKED_OPERATORS, STOCK
from optimum_slim.model.grids import Grid, grids_of, put_grids
from optimum_slim.tasks import TextGeneration
from optimum_slim.techniques.quantize import neural_compressor
from optimum_slim.techniques.quantize.neural_compressor import PARTS, packed_integers, strung_together
from optimum_slim.techniques.quantize.weights import LIBRARIES, QuantizeWeights
from tests.deploy.test_blocks import unpacked
from tests.tiny import answers, tiny, token_batches

needs_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in LIBRARIES),
    reason="neural-compressor and auto-round are not installed",
)


def words_of(integers, bits):
    """int32 words of integers, the first lowest, packed down the rows."""
    parts = integers.reshape(-1, 32 // bits, integers.shape[1]).astype(np.uint32)
    shifts = (np.arange(32 // bits, dtype=np.uint32) * bits)[:, None]
    return torch.from_numpy((parts << shifts).sum(1, dtype=np.uint32).view(np.int32))


@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_unpacked_as_they_were_packed(bits):
    draw = np.random.default_rng(0)
    q, zeros = draw.integers(0, 2**bits, (64, 16)), draw.integers(0, 2**bits, (16, 2))
    scales = draw.random((2, 16), np.float32)
    less_one = words_of((zeros - 1) % 2**bits, bits).T
    found = packed_integers(words_of(q, bits), less_one, torch.from_numpy(scales), bits)
    for one, wanted in zip(found, (q.T, scales.T, zeros), strict=True):
        np.testing.assert_array_equal(one.numpy(), wanted)


def test_texts_are_strung_together_without_padding():
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
    }
    assert strung_together([batch]).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def check_file(model, wanted, folder):
    """The file of `model` holds these integers, and answers as the torch model does.

    Args:
        wanted: (q, scale, zero point) by the names of weights.
    """
    source = export_folder(model, TextGeneration, folder / "fp32")
    model.config.save_pretrained(folder)
    high = [name for name, p in model.named_parameters() if p.ndim == 2 and name not in wanted]
    options = {"grids": weights_on_grids(model), "high": high, "accuracy_level": 1}
    PRECISIONS["int4-weights"](prepared(source / "model.onnx"), folder / "model.onnx", **options)
    graph = onnx.load(folder / "model.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {weight_of(node, wanted): node for node in graph.node if node.op_type in (STOCK, *BLOCKED_OPERATORS)}
    assert found.keys() == wanted.keys()
    for name, node in found.items():
        q, scale, _ = wanted[name]
        bits = grids_of(model)[name].bits
        np.testing.assert_array_equal(unpacked(stored[node.input[1]], bits, q.shape[1]), q.numpy())
        ratio = stored[node.input[2]].reshape(len(scale), -1) / scale.numpy()
        assert np.unique(ratio) in (np.float32(1), np.float32(0.25))  # exports fold 1 / sqrt(head size) into queries
    for batch in token_batches():
        ours = answers(model, batch)
        assert (answers(load_ort(folder, TextGeneration), batch) - ours).abs().max() < 1e-4 * ours.abs().max()


@needs_libraries
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_of_a_model_that_neural_compressor_quantized_stand_in_the_file(symmetric, tmp_path):
    from neural_compressor.torch.quantization import RTNConfig, convert, prepare

    model = tiny("llama")
    config = RTNConfig(bits=4, group_size=32, use_sym=symmetric)
    theirs = convert(prepare(copy.deepcopy(model), config))
    wanted = {}
    for name, module in theirs.named_modules():
        if hasattr(module, "unpack"):
            found = packed_integers(*(getattr(module, part) for part in PARTS), 4)
            told = module.unpack()
            assert torch.equal(found[0].int(), told["int_weight"].int())
            assert torch.equal(found[2].int(), told["zp"].int())
            grid = Grid(found[1], found[2], 4, 32)
            model.get_parameter(f"{name}.weight").data.copy_(grid.floats(found[0]))
            put_grids(model, {f"{name}.weight": grid})
            wanted[f"{name}.weight"] = found
    assert len(wanted) == 21
    check_file(model, wanted, tmp_path)


@needs_libraries
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"symmetric": False, "group_size": 16}, {"bits": 8, "group_size": None}], ids=str
)
def test_what_autoround_learnt_stands_in_the_file(settings, tmp_path, monkeypatch):
    model, learnt, whole = tiny("llama"), {}, neural_compressor.autoround
    before = copy.deepcopy(model)
    monkeypatch.setattr(neural_compressor, "autoround", lambda *a, **k: learnt.update(whole(*a, **k)) or learnt)
    technique = QuantizeWeights(method="autoround", iterations=4, targets=("ffn",), **settings)
    technique.apply(model, token_batches(((8, 32), (8, 32))), 0, tmp_path / "learning")
    wanted = {f"{name}.weight": found for name, found in learnt.items() if ".mlp." in name}
    assert wanted.keys() == grids_of(model).keys()
    assert not (tmp_path / "learning").exists()
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, before.model.layers[0].self_attn.q_proj.weight)
    check_file(model, wanted, tmp_path)

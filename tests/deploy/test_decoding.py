"""Attention with a cache is one operator afterwards, and everything that reads the model gets the same from it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from optimum_slim.deploy import decoding
from optimum_slim.deploy.attention import fold_scales
from optimum_slim.deploy.decoding import OPSET, fuse_cached_attention, own_cached_attention
from optimum_slim.deploy.export import export
from optimum_slim.deploy.glue import freeze_shapes
from optimum_slim.deploy.graph import opset_of
from optimum_slim.deploy.memory import opened
from optimum_slim.deploy.precision import fp32, prepared
from optimum_slim.deploy.verify import load_ort
from optimum_slim.kernels.attention import ROTARY_ATTENTION
from optimum_slim.model.surgery import keep_heads, merge_kv_heads
from optimum_slim.tasks import task_named
from tests.tiny import GROUPED, mostly_slow, tiny, token_batches

CLOSE = 1e-4  # of the largest logit
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}  # scales cosines, too
# Config keys by what is special about them.
SPECIAL = {
    "llama3 scaling": ("llama", {"rope_scaling": LLAMA3, "max_position_embeddings": 64}),
    "linear scaling": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "yarn": ("qwen2", {"rope_scaling": YARN, "max_position_embeddings": 64}),
    "past all positions": ("llama", {"max_position_embeddings": 8}),
    "window": ("mistral", {"sliding_window": 5}),
    "window in some layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "as many key heads": ("llama", {"num_key_value_heads": 4}),
    "one key head": ("llama", {"num_key_value_heads": 1}),
    "odd head size": ("llama", {"head_dim": 10}),
}


def folders(model, root):
    """The export, and the same with its attention fused: as a stock operator, and as ours."""
    for name in ("export", "fused", "own"):
        (root / name).mkdir()
        model.config.save_pretrained(root / name)
    export(model, task_named("auto", model.config), root / "export" / "model.onnx")
    fp32(prepared(root / "export" / "model.onnx"), root / "fused" / "model.onnx")
    graph = onnx.load(root / "fused" / "model.onnx")
    assert own_cached_attention(graph) == 3
    onnx.save(graph, root / "own" / "model.onnx")
    return root / "export", root / "fused", root / "own"


def count(folder, op_type):
    return sum(node.op_type == op_type for node in onnx.load(folder / "model.onnx").graph.node)


@pytest.fixture(scope="module", params=mostly_slow("llama", "qwen3", families=GROUPED))
def pair(request, tmp_path_factory):
    """A model whose layers differ in heads, and its folder."""
    model = tiny(request.param)
    merge_kv_heads(model, 0, 1)
    keep_heads(model, 2, [2, 3])
    return model, folders(model, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=mostly_slow("window", "yarn", families=SPECIAL))
def special(request, tmp_path_factory):
    family, changes = SPECIAL[request.param]
    model = tiny(family, **changes)
    return model, folders(model, tmp_path_factory.mktemp("special"))


def loaded(model, folder):
    return load_ort(folder, task_named("auto", model.config))


def with_positions(batch):
    """As generation counts them: padding does not."""
    return batch | {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def same_logits(model, exported, fused):
    """Of a prompt, of one more token, and of three at once after that."""
    one, other = loaded(model, exported), loaded(model, fused)
    for padding in ("left", "right"):
        (batch,) = token_batches(((3, 14),), padding)
        batch, caches = with_positions(batch), [None, None]
        for start, stop in ((0, 10), (10, 11), (11, 14)):
            inputs = {name: batch[name][:, start:stop] for name in ("input_ids", "position_ids")}
            outputs = [
                ort(**inputs, attention_mask=batch["attention_mask"][:, :stop], past_key_values=cache, use_cache=True)
                for ort, cache in zip((one, other), caches, strict=True)
            ]
            caches = [each.past_key_values for each in outputs]
            real = batch["attention_mask"][:, start:stop, None]
            wanted, found = (each.logits * real for each in outputs)
            assert (found - wanted).abs().max() <= CLOSE * max(1.0, wanted.abs().max())


def same_tokens(model, fused):
    ort = loaded(model, fused)
    for padding in ("left", "right"):
        for size in ((1, 7), (3, 12)):
            for ways in ({}, {"num_beams": 3, "num_return_sequences": 2}):
                (batch,) = token_batches((size,), padding)
                settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False} | ways
                assert torch.equal(ort.generate(**batch, **settings), model.generate(**batch, **settings))


def test_every_attention_is_one_node(pair):
    exported, fused, own = pair[1]
    assert count(exported, "Softmax") == count(fused, "Attention") == 3
    assert count(fused, "RotaryEmbedding") == 6
    assert count(fused, "Softmax") == count(own, "Attention") == 0
    assert count(own, ROTARY_ATTENTION) == 3
    assert count(own, "RotaryEmbedding") == 0


@pytest.mark.parametrize("which", [1, 2], ids=["stock", "own"])
def test_logits_stay_the_same_with_any_padding_and_after_any_cache(pair, which):
    model, found = pair
    same_logits(model, found[0], found[which])


@pytest.mark.parametrize("which", [1, 2], ids=["stock", "own"])
def test_the_same_tokens_are_generated_greedily_and_by_beams(pair, which):
    model, found = pair
    same_tokens(model, found[which])


@pytest.mark.parametrize("which", [1, 2], ids=["stock", "own"])
def test_special_positions_windows_and_heads_stay_what_they_are(special, which):
    model, found = special
    assert count(found[1], "Attention") == 3
    same_logits(model, found[0], found[which])
    same_tokens(model, found[which])


def test_contexts_far_longer_than_a_prompt_give_the_same_tokens(special):
    model, (_, _, fused) = special
    (batch,) = token_batches(((2, 6),), "left")
    settings = {"max_new_tokens": 60, "min_new_tokens": 60, "do_sample": False}
    assert torch.equal(loaded(model, fused).generate(**batch, **settings), model.generate(**batch, **settings))


@pytest.mark.parametrize("family", ["gpt2", "opt", "bert"])
def test_other_families_stay_as_they_are(family, tmp_path):
    model = tiny(family, num_hidden_layers=2)
    export(model, task_named("auto", model.config), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    freeze_shapes(graph)
    fold_scales(graph)
    before = graph.SerializeToString()
    assert fuse_cached_attention(graph) == 0
    assert graph.SerializeToString() == before


def ready(tmp_path):
    """A graph whose attention can be fused."""
    model = tiny("llama", num_hidden_layers=1)
    export(model, task_named("auto", model.config), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    freeze_shapes(graph)
    fold_scales(graph)
    return graph


def test_a_rewrite_that_would_change_answers_is_taken_back(tmp_path, monkeypatch):
    graph = ready(tmp_path)
    before = graph.SerializeToString()
    changed = decoding.rewritten(graph, [decoding._CachedAttention.rule(True)], OPSET)
    for node in changed:
        for attribute in node.attribute:
            if node.op_type == "Attention" and attribute.name == "scale":
                attribute.f *= 1.1
    monkeypatch.setattr(decoding, "rewritten", lambda *arguments: changed)
    assert fuse_cached_attention(graph) == 0
    assert graph.SerializeToString() == before


def test_halves_that_are_rotated_by_different_angles_stay_as_they_are(tmp_path):
    graph = ready(tmp_path)
    # The second half of the angles is twice the first.
    join = next(node for node in graph.graph.node if node.name == "/model/rotary_emb/Concat_1")
    graph.graph.node.insert(
        list(graph.graph.node).index(join), onnx.helper.make_node("Add", [join.input[0], join.input[0]], ["twice"])
    )
    join.input[1] = "twice"
    before = graph.SerializeToString()
    assert fuse_cached_attention(graph) == 0
    assert graph.SerializeToString() == before
    assert opset_of(graph) < OPSET


def test_large_and_small_weights_are_lent_alike(tmp_path):
    graph = ready(tmp_path)
    ids = np.array([[5, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(3)[None]}
    inputs |= {f"past_key_values.0.{name}": np.zeros((1, 2, 0, 16), np.float32) for name in ("key", "value")}
    (wanted,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(["logits"], inputs)
    with opened(graph, ["/model/norm/Mul_1_output_0"]) as session:
        logits, *_, normed = session.run(None, inputs)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    assert normed.shape == (1, 3, 64)

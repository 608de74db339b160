"""What is written down is what was computed: the same answers at any batch, length and cache, with fewer nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from optimum_slim.deploy.attention import fold_scales, fuse_attention
from optimum_slim.deploy.benchmark import feeds, with_cache
from optimum_slim.deploy.export import export
from optimum_slim.deploy.glue import freeze_shapes
from optimum_slim.deploy.graph import sum_residuals
from optimum_slim.deploy.norms import fuse_residual_norms
from optimum_slim.tasks import task_named
from tests.tiny import DECODERS, ENCODERS, mostly_slow, tiny

SIZES = (("prefill", 1, 1), ("prefill", 3, 17), ("decode", 2, 1), ("decode", 1, 40))


@pytest.mark.parametrize("family", mostly_slow("bert", "llama", "gpt2"))
def test_answers_stay_the_same_at_any_size(family, tmp_path):
    model = tiny(family)
    export(model, task_named("auto", model.config), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    nodes = len(graph.graph.node)
    assert freeze_shapes(graph) == nodes - len(graph.graph.node) > nodes / 5
    onnx.save(graph, tmp_path / "frozen.onnx")
    encoder = family in ENCODERS
    # A decoder's queries pass a rotation, a split, or a scale of their own.
    assert fold_scales(graph) == (6 if encoder else 3)
    onnx.save(graph, tmp_path / "folded.onnx")
    sum_residuals(graph)
    norms = fuse_residual_norms(graph)
    # RoBERTa counts positions for each text, so its embeddings are a sum like any. In decoders others read it, too.
    assert not encoder or norms == (7 if "roberta" in family else 6)
    assert fuse_attention(graph) == (3 if encoder else 0)
    onnx.save(graph, tmp_path / "fused.onnx")
    names = ("model", "frozen", "folded", "fused")
    before, *others = (onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")) for name in names)
    for phase, batch, tokens in SIZES:
        inputs = feeds(before, phase if family in DECODERS else "prefill", batch, tokens)
        if family in DECODERS and phase == "decode":
            inputs = with_cache(before, inputs, batch, tokens)
        wanted = before.run(None, inputs)
        for other in others:
            for found, right in zip(other.run(None, inputs), wanted, strict=True):
                np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * np.abs(right).max())

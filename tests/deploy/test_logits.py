"""A decoder's file gives generation the logits that it reads, and everyone else those of all tokens on demand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from optimum_slim import session_options
from optimum_slim.deploy.benchmark import feeds, with_cache
from optimum_slim.deploy.export import export, stock_cache_fits
from optimum_slim.deploy.logits import last_logits
from optimum_slim.deploy.parts import file_parts
from optimum_slim.deploy.precision import PRECISIONS, make_precisions
from optimum_slim.deploy.verify import load_ort
from optimum_slim.tasks import task_named
from tests.tiny import DECODERS, mostly_slow, options_of, tiny, token_batches


@pytest.fixture(scope="module", params=mostly_slow("qwen2", "gpt2", families=DECODERS))
def made(request, tmp_path_factory):
    """A model, and folders by logits and precision."""
    model, root = tiny(request.param, num_hidden_layers=2), tmp_path_factory.mktemp(request.param)
    model.config.save_pretrained(root)
    export(model, task_named("auto", model.config), root / "model.onnx")
    wanted = {name: options_of(name) for name in PRECISIONS}
    folders = {}
    for logits in ("last", "all"):
        (root / logits).mkdir()
        folders[logits] = make_precisions(root, root / logits, wanted, logits)
    return model, folders


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_of_the_last_token_are_those_of_all(made, precision):
    folders = made[1]
    last, every = (
        onnxruntime.InferenceSession(str(folders[name][precision] / "model.onnx"), session_options(1))
        for name in ("last", "all")
    )
    for batch, tokens in ((1, 1), (2, 9)):
        for phase in ("prefill", "decode"):
            inputs = feeds(every, phase, batch, tokens)
            inputs = inputs if phase == "prefill" else with_cache(every, inputs, batch, tokens)
            (one, *cache), (right, *others) = last.run(None, inputs), every.run(None, inputs)
            assert one.shape == (batch, 1, right.shape[2])
            # Dynamic activations share one scale: of all tokens where there are others.
            tolerance = 0.05 if precision == "int8-dynamic" else 1e-5
            np.testing.assert_allclose(one, right[:, -1:], atol=tolerance * np.abs(right).max())
            assert all(np.array_equal(a, b) for a, b in zip(cache, others, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_files_are_judged_by_the_logits_of_all_tokens(made, precision):
    model, folders = made
    (batch,) = token_batches(((2, 9),), "left")
    found = [load_ort(folders[name][precision], task_named("auto", model.config)) for name in ("last", "all")]
    one, other = (ort(**batch).logits for ort in found)
    assert torch.equal(one, other)
    assert one.shape[1] == 9


def test_anyone_can_read_all_logits(made):
    folder = made[1]["last"]["fp32"]
    (batch,) = token_batches(((2, 9),), "left")
    assert ORTModelForCausalLM.from_pretrained(folder)(**batch).logits.shape[1] == 1
    options = session_options(all_logits=True)
    assert ORTModelForCausalLM.from_pretrained(folder, session_options=options)(**batch).logits.shape[1] == 9


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("ways", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_stock_generation_is_the_same(made, ways, binding):
    model, folders = made
    if binding and not stock_cache_fits(model):
        pytest.skip("stock io-binding computes the cache's sizes by itself, and wrongly")
    found = []
    for one in (model, ORTModelForCausalLM.from_pretrained(folders["last"]["fp32"], use_io_binding=binding)):
        (batch,) = token_batches(((3, 9),), "left")
        torch.manual_seed(0)
        found.append(one.generate(**batch, **{"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8} | ways))
    assert torch.equal(*found)


def test_what_says_so_counts_as_part_of_the_head(made):
    rows = {row["part"] for row in file_parts(made[1]["last"]["fp32"] / "model.onnx")}
    assert "other weights" not in rows


def test_encoders_have_no_last_token(tmp_path):
    model = tiny("bert", num_hidden_layers=2)
    export(model, task_named("auto", model.config), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    assert not last_logits(graph)

"""A server's threads share one session of a whole model, and each gets the answer that it would get alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from optimum_slim.deploy.export import export
from optimum_slim.deploy.machine import session_options
from optimum_slim.deploy.precision import int8_rows, prepared
from optimum_slim.kernels.function import DOMAIN
from optimum_slim.kernels.library import library_path
from optimum_slim.tasks import task_named
from tests.tiny import tiny, token_batches

# Texts and tokens of each thread. The largest are work enough for every operator to split it over two threads.
SIZES = [(1, 1), (1, 128), (2, 7), (3, 40), (8, 16), (1, 33), (20, 64), (17, 128)]
PATTERNS = {"layer.0.intermediate.dense.weight": "4x1", "layer.1.intermediate.dense.weight": "unstructured"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A BERT of which two weights are sparse."""
    model = tiny("bert", hidden_size=192, intermediate_size=512, num_hidden_layers=2)
    for name, parameter in model.named_parameters():
        if name.endswith(tuple(PATTERNS)):
            keep = torch.rand(parameter.shape[0], parameter.shape[1] // 4) < 0.2
            parameter.data *= keep.repeat_interleave(4, 1)
    path = tmp_path_factory.mktemp("threads") / "model.onnx"
    export(model, task_named("auto", model.config), path)
    return path


def operators(path):
    return {node.op_type for node in onnx.load(path).graph.node if node.domain == DOMAIN}


@pytest.mark.skipif(library_path() is None, reason="the kernels are not built here")
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_eight_threads_at_once_get_the_answers_of_one(exported, tmp_path, group_size, rounds):
    path = tmp_path / "model.onnx"
    int8_rows(prepared(exported), path, group_size, PATTERNS)
    linear = "SlimLinearGrouped" if group_size else "SlimLinear"
    assert operators(path) == {linear, f"{linear}Gelu", "SlimAttention", "SlimResidualNorm"}
    one, shared = (onnxruntime.InferenceSession(str(path), session_options(threads)) for threads in (1, 2))
    inputs = [
        {name: value.numpy() for name, value in batch.items()} | {"token_type_ids": np.zeros(size, np.int64)}
        for batch, size in zip(token_batches(SIZES), SIZES)
    ]
    right = [one.run(None, feeds)[0] for feeds in inputs]
    together = threading.Barrier(len(inputs), timeout=60)

    def work(feeds):
        together.wait()
        return [shared.run(None, feeds)[0] for _ in range(rounds)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        for found, answer in zip(pool.map(work, inputs), right):
            for each in found:
                np.testing.assert_array_equal(each, answer)

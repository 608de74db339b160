"""Models of one SlimAttention or SlimResidualNorm node, and inputs that fit them."""

from __future__ import annotations

import numpy as np
from onnx import helper
from onnx.onnx_pb import ModelProto, NodeProto, TensorProto

from optimum_slim.kernels.attention import attention_function, attention_node
from optimum_slim.kernels.function import DOMAIN
from optimum_slim.kernels.norm import residual_norm_function, residual_norm_node
from tests.kernels.layers import random_rows

LOWEST = np.finfo(np.float32).min


def attention_model(heads: int) -> ModelProto:
    ranks = {"query": 3, "key": 3, "value": 3, "mask": 4}
    return _model_of(attention_node(list(ranks), "y", heads), ranks)


def norm_model(epsilon: float = 1e-6) -> ModelProto:
    ranks = {"a": 3, "b": 3, "weight": 1, "bias": 1}
    return _model_of(residual_norm_node(list(ranks), "y", epsilon), ranks)


def attention_inputs(batch, queries, keys, width, mask=(1, 1, 1)):
    mask_values = np.where(np.random.default_rng(0).random((*mask, keys)) < 0.3, LOWEST, np.float32(0))
    mask_values[..., 0] = 0
    query = random_rows(batch, queries, width) / 2
    key, value = random_rows(batch, keys, width, seed=2) / 2, random_rows(batch, keys, width, seed=3)
    return {"query": query, "key": key, "value": value, "mask": mask_values.astype(np.float32)}


def norm_inputs(batch, tokens, width):
    rows = {name: random_rows(batch, tokens, width, seed=i) for i, name in enumerate(("a", "b"))}
    return rows | {name: random_rows(width, seed=i + 5) for i, name in enumerate(("weight", "bias"))}


def _model_of(node: NodeProto, ranks: dict[str, int]) -> ModelProto:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{i}" for i in range(rank)])
        for name, rank in ranks.items()
    ]
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    functions = [attention_function(), residual_norm_function()]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=9)

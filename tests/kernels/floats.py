"""Models of one node of floats, attention or norm, and inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from onnx import helper
from onnx.onnx_pb import FunctionProto, ModelProto, NodeProto, TensorProto

from optimum_slim.kernels.attention import (
    CACHED_OPSET,
    CACHED_OUTPUTS,
    PACKED_ATTENTION,
    PACKED_INPUTS,
    ROTARY_ATTENTION,
    ROTARY_INPUTS,
    attention_function,
    attention_node,
    cached_attention_node,
    packed_attention_function,
    rotary_attention_function,
)
from optimum_slim.kernels.function import DOMAIN
from optimum_slim.kernels.norm import RMS_NORM, residual_norm_function, residual_norm_node, rms_norm_function
from tests.kernels.layers import random_rows

LOWEST = np.finfo(np.float32).min


def attention_model(heads: int) -> ModelProto:
    ranks = {"query": 3, "key": 3, "value": 3, "mask": 4}
    return _model_of(attention_node(list(ranks), "y", heads), ranks)


def rotary_attention_model(heads: int, kv_heads: int, scale: float = 0.25) -> ModelProto:
    return _cached_model(ROTARY_ATTENTION, ROTARY_INPUTS, heads, kv_heads, scale)


def packed_attention_model(heads: int, kv_heads: int, scale: float = 0.25) -> ModelProto:
    return _cached_model(PACKED_ATTENTION, PACKED_INPUTS, heads, kv_heads, scale)


def _cached_model(op_type: str, inputs: Sequence[str], heads: int, kv_heads: int, scale: float) -> ModelProto:
    ranks = {name: 4 if name in ("mask", "past_key", "past_value") else 3 for name in inputs}
    sizes = {"q_num_heads": heads, "kv_num_heads": kv_heads, "scale": scale}
    node = cached_attention_node(op_type, inputs, CACHED_OUTPUTS, **sizes)
    functions = [rotary_attention_function(), packed_attention_function()]
    return _model_of(node, ranks, functions, CACHED_OPSET, {"mask": TensorProto.BOOL})


def norm_model(epsilon: float = 1e-6) -> ModelProto:
    ranks = {"a": 3, "b": 3, "weight": 1, "bias": 1}
    return _model_of(residual_norm_node(list(ranks), "y", epsilon), ranks)


def rms_norm_model(epsilon: float = 1e-6) -> ModelProto:
    ranks = {"x": 3, "weight": 1}
    return _model_of(helper.make_node(RMS_NORM, list(ranks), ["y"], domain=DOMAIN, epsilon=epsilon), ranks)


def attention_inputs(batch, queries, keys, width, mask=(1, 1, 1)):
    mask_values = np.where(np.random.default_rng(0).random((*mask, keys)) < 0.3, LOWEST, np.float32(0))
    mask_values[..., 0] = 0
    query = random_rows(batch, queries, width) / 2
    key, value = random_rows(batch, keys, width, seed=2) / 2, random_rows(batch, keys, width, seed=3)
    return {"query": query, "key": key, "value": value, "mask": mask_values.astype(np.float32)}


def rotary_attention_inputs(batch, tokens, past, heads, kv_heads, size, queries=None):
    """Texts of which each is padded on its left by another count, and sees no later tokens; the last `queries` of the
    tokens ask."""
    first = 0 if queries is None else tokens - queries
    seen = np.tril(np.ones((batch, 1, tokens, past + tokens), bool), past)[:, :, first:]
    for text in range(batch):
        seen[text, ..., :text] = False
    query = random_rows(batch, tokens, heads * size)[:, first:]
    key, value = (random_rows(batch, tokens, kv_heads * size, seed=i) for i in (2, 3))
    past_key, past_value = (random_rows(batch, kv_heads, past, size, seed=i) for i in (4, 5))
    angles = random_rows(batch, tokens, size // 2, seed=6)
    turns = [part(some) for some in (angles[:, first:], angles) for part in (np.cos, np.sin)]
    inputs = (query, key, value, seen, past_key, past_value, *turns)
    return dict(zip(ROTARY_INPUTS, inputs, strict=True))


def packed_attention_inputs(*sizes):
    """The same, with queries, keys and values beside each other; all tokens ask."""
    inputs = rotary_attention_inputs(*sizes)
    packed = np.concatenate([inputs.pop(name) for name in ("query", "key", "value")], -1)
    cos, sin = (inputs[f"key_{part}"] for part in ("cos", "sin"))
    return {"packed": packed, "cos": cos, "sin": sin} | {name: inputs[name] for name in PACKED_INPUTS[1:4]}


def turned(x, heads, cos, sin):
    """Rows [batch, tokens, heads * size] with each head turned: Su et al., arXiv:2104.09864, by halves."""
    first, second = np.split(x.reshape(*x.shape[:2], heads, -1), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def norm_inputs(batch, tokens, width):
    rows = {name: random_rows(batch, tokens, width, seed=i) for i, name in enumerate(("a", "b"))}
    return rows | {name: random_rows(width, seed=i + 5) for i, name in enumerate(("weight", "bias"))}


def rms_norm_inputs(batch, tokens, width):
    return {"x": random_rows(batch, tokens, width), "weight": random_rows(width, seed=5)}


def _model_of(
    node: NodeProto,
    ranks: Mapping[str, int],
    functions: Sequence[FunctionProto] = (),
    opset: int = 18,
    types: Mapping[str, int] = MappingProxyType({}),
) -> ModelProto:
    """Inputs are floats where `types` does not say else."""
    inputs = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), [f"{name}{i}" for i in range(rank)])
        for name, rank in ranks.items()
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
    graph = helper.make_graph([node], "one", inputs, outputs)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    functions = functions or [attention_function(), residual_norm_function(), rms_norm_function()]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=9)

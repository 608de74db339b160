"""Which ONNX initializer holds which torch weight: found by the node's path, believed only if the values agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from optimum_slim.deploy.stored import array_of
from optimum_slim.errors import ModelError
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.streamed import in_parts

T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """Where a weight stands in an ONNX graph."""

    initializer: str
    node: str  # the first node that computes with it
    transposed: bool  # stored as the transpose of the torch tensor


def find_weights(graph: onnx.ModelProto, model: PreTrainedModel) -> dict[str, Stored]:
    """The initializers of all linear and embedding weights.

    The exporter renames linears (`onnx::MatMul_746`), but a node's name keeps the path of its module:
    `/bert/encoder/layer.0/attention/self/query/MatMul`.

    Args:
        graph: an fp32 export of `model`, wherever its weights are.
        model: the torch model that was exported.

    Returns:
        For each torch parameter name, e.g. "bert.encoder.layer.0.intermediate.dense.weight", where it is stored.

    Raises:
        ModelError: a weight is not in the graph, or its values differ.
    """
    initializers = {tensor.name: tensor for tensor in graph.graph.initializer}
    sources = {output: node for node in graph.graph.node for output in node.output}
    nodes = {module_path(node): node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm", "Gather")}
    blocks = tuple(f"{block.name}." for block in blocks_of(model))
    linears = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear | Conv1D | nn.Embedding)}
    found = {}
    for _ in in_parts(model):
        for name in [name for name in linears if not linears[name].weight.is_meta]:
            module = linears.pop(name)
            # OPT's head calls the decoder past its base model, whose name is then missing from the path.
            node = nodes.get(name) or nodes.get(name.removeprefix(f"{model.base_model_prefix}."))
            if node is None:
                if name.startswith(blocks):
                    raise ModelError(f"{name}: no node of the ONNX graph computes with it")
                continue  # a pooler, where the task does not read it
            operand = node.input[0 if node.op_type == "Gather" else 1]
            if operand in sources and sources[operand].op_type == "Transpose":  # a head that reads the embedding
                operand = sources[operand].input[0]
            if operand not in initializers:
                raise ModelError(f"{name}: node {node.name} of the ONNX graph does not read a stored weight")
            stored = array_of(initializers[operand])
            weight = module.weight.detach().float().cpu().numpy()
            if stored.shape == weight.shape and np.array_equal(stored, weight):
                found[f"{name}.weight"] = Stored(operand, node.name, transposed=False)
            elif stored.shape == weight.T.shape and np.array_equal(stored, weight.T):
                found[f"{name}.weight"] = Stored(operand, node.name, transposed=True)
            else:
                raise ModelError(
                    f"{name}: initializer {operand} of the ONNX graph holds other values than the torch weight"
                )
    return found


def nodes_of(graph: onnx.ModelProto, weights: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes that compute with these torch weights, by the paths in their names, as far as there are any.

    Args:
        graph: an export, also with its linears or tables rewritten, as long as nodes keep their names.
        weights: torch parameter names, e.g. "bert.encoder.layer.0.output.dense.weight".
    """
    products = [node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm", "Gather")]
    return [node for node in products if weight_of(node, weights) is not None]


def weight_of(node: onnx.NodeProto, weights: Collection[str]) -> str | None:
    """Which of these torch weights a node computes with; the base model's name may be missing from its path."""
    path = module_path(node)
    found = (name for name in weights if f".{name}".endswith(f".{path}.weight"))
    return next(found, None) if path else None


def told_of(node: onnx.NodeProto, named: Mapping[str, T]) -> T | None:
    """What is said of the torch weight that a node computes with; None where nothing is."""
    name = weight_of(node, named)
    return None if name is None else named[name]


def module_path(node: onnx.NodeProto) -> str:
    """The torch module that a node came from: `/bert/pooler/dense/Gemm` is `bert.pooler.dense`."""
    return node.name.strip("/").rpartition("/")[0].replace("/", ".")

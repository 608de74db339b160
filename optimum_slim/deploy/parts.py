"""What each byte of an ONNX file is for: the embeddings, the attention, the feed-forward layers, and each block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from optimum_slim.deploy.export import onnx_bytes
from optimum_slim.deploy.names import module_path
from optimum_slim.deploy.wiring import attribute_of
from optimum_slim.kernels.blocked import STOCK
from optimum_slim.kernels.joined import BLOCKED_LINEARS, parted
from optimum_slim.model.anatomy import Block, blocks_of
from optimum_slim.model.checkpoint import empty_model, load_config
from optimum_slim.model.shape import shape_of
from optimum_slim.model.sparsity import sparsity_in

# A weight that several parts read, as a head reads its embedding, counts for the first of them.
PARTS = ("embeddings", "attention", "feed-forward", "norms", "head", "other weights", "graph")

# What the rewrites of `graph` put between a weight and the module that computes with it, under no name.
_PASSED = ("Cast", "DequantizeLinear", "Identity", "Mul", "Reshape", "Transpose", "Unsqueeze")
_STORED = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "UINT8": "int8"}


@dataclass(frozen=True)
class Weight:
    """An initializer of an ONNX graph, and what it is to the torch model."""

    bytes: int  # in the file, its name and sizes included
    modules: tuple[str, ...]  # the modules that compute with it, in the order in which they run
    stored: str  # e.g. "int8"


def file_parts(path: Path) -> list[dict[str, Any]]:
    """Rows {part, bytes} that add up to the file with its external data; a part that takes nothing has no row.

    `head` is every linear outside the blocks, a pooler too; `graph` is what is no weight: nodes, names, constants.

    Args:
        path: a model.onnx of any precision, with its config.json beside it.

    Raises:
        ModelError: config.json cannot be read, or its family is not supported.
    """
    model = empty_model(load_config(path.parent))
    roles = module_parts(model)
    sizes = dict.fromkeys(PARTS, 0)
    for weight in weights_in(path, model):
        parts = [roles[name] for name in weight.modules] or ["other weights"]
        sizes[min(parts, key=PARTS.index)] += weight.bytes
    sizes["graph"] = onnx_bytes(path) - sum(sizes.values())
    return [{"part": part, "bytes": size} for part, size in sizes.items() if size]


def layer_rows(path: Path) -> list[dict[str, Any]]:
    """For each block rows {layer, heads, kv_heads, ffn, parameters, bytes, stored}; a weight that blocks share counts
    for the first. `stored` tells of the linears: fp32, int8, int8 static, int8 4x1, 8-bit blocks, or several of these;
    also where zeros bring nothing, because the layer is no faster with them or the precision knows none.

    Raises:
        ModelError: as `file_parts`.
    """
    model = empty_model(load_config(path.parent))
    weights = [weight for weight in weights_in(path, model) if weight.modules]
    sparse, rows = sparsity_in(model.config), []
    for block, shape in zip(blocks_of(model), shape_of(model).blocks, strict=True):
        linears = linears_of(block)
        own = [weight for weight in weights if weight.modules[0].startswith(f"{block.name}.")]
        # A linear's scales and bias are smaller than its weight.
        largest = {
            name: max((w for w in own if w.modules[0] == name), key=lambda w: w.bytes, default=None) for name in linears
        }
        stored = [_told(w.stored, sparse.get(f"{name}.weight")) for name, w in largest.items() if w]
        rows.append(
            {
                "layer": block.index,
                "heads": shape.heads,
                "kv_heads": shape.kv_heads,
                "ffn": shape.ffn,
                "parameters": sum(parameter.numel() for parameter in block.module.parameters()),
                "bytes": sum(weight.bytes for weight in own),
                "stored": ", ".join(dict.fromkeys(stored)),
            }
        )
    return rows


def module_parts(model: PreTrainedModel) -> dict[str, str]:
    """Of which part each module is, by the roles of the family's anatomy and else by the kind of module."""
    roles = {name: part for block in blocks_of(model) for name, part in linears_of(block).items()}
    inside = tuple(f"{block.name}." for block in blocks_of(model))
    return {
        name: roles.get(name) or _kind(module, outside=not name.startswith(inside))
        for name, module in model.named_modules()
    }


def linears_of(block: Block) -> dict[str, str]:
    """The part of each linear of a block, by its name in the whole model."""
    anatomy = block.anatomy
    attention, ffn = (*anatomy.projections, anatomy.output), (*anatomy.ffn_in, anatomy.ffn_out)
    parts = dict.fromkeys(attention, "attention") | dict.fromkeys(ffn, "feed-forward")
    return {f"{block.name}.{path}": part for path, part in parts.items()}


def weights_in(path: Path, model: PreTrainedModel) -> Iterator[Weight]:
    """Every initializer of a file, without reading external data. Node names keep the paths of torch modules through
    export and quantization, so a weight belongs to the modules whose nodes read it.

    Args:
        path: the file.
        model: the torch model that it was made of, values not needed.
    """
    graph = onnx.load(path, load_external_data=False).graph
    known = {name for name, _ in model.named_modules()} - {""}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def modules(value: str) -> Iterator[tuple[str, onnx.NodeProto]]:
        for node in readers.get(value, []):
            linear = next((one for one in parted(node) if value in one.input[1:]), node)
            name = _module(linear, known, model.base_model_prefix)
            if name is not None:
                yield name, node
            elif node.op_type in _PASSED:
                yield from (found for output in node.output for found in modules(output))

    for tensor in graph.initializer:
        found = list(modules(tensor.name))
        outside = next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), 0)
        names = tuple(dict.fromkeys(name for name, _ in found))
        yield Weight(tensor.ByteSize() + outside, names, _stored(tensor, [node for _, node in found]))


def _module(node: onnx.NodeProto, known: set[str], prefix: str) -> str | None:
    """The innermost module that a node's name leads to. Some heads call past the base model, whose name is then missing
    from the path."""
    path = module_path(node)
    while path:
        for name in (path, f"{prefix}.{path}"):
            if name in known:
                return name
        path = path.rpartition(".")[0]
    return None


def _kind(module: nn.Module, outside: bool) -> str:
    """The part of a module that has no role in a block."""
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if type(module).__name__.endswith("Norm"):
        return "norms"
    return "head" if outside and isinstance(module, nn.Linear | Conv1D) else "other weights"


def _told(stored: str, pattern: str | None) -> str:
    return stored if pattern is None or pattern in stored else f"{stored} ({pattern} zeros without gain)"


def _stored(tensor: TensorProto, nodes: list[onnx.NodeProto]) -> str:
    for node in nodes:
        if node.op_type.startswith("SlimLinear"):
            pattern = attribute_of(node, "pattern", b"").decode()
            return "int8" if pattern == "dense" else f"int8 {pattern}"
        if node.op_type == "DequantizeLinear":
            return "int8 static"
        if node.op_type in (STOCK, *BLOCKED_LINEARS):
            return f"{attribute_of(node, 'bits', None)}-bit blocks"
    kind = TensorProto.DataType.Name(tensor.data_type)
    return _STORED.get(kind, kind.lower())

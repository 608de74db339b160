"""Cut blocks, heads and neurons out of a model. The only file that resizes tensors, and it rewrites the config in the
same call, so that a model and its config never disagree."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from optimum_slim.model.anatomy import Block, anatomy_of, block_list, blocks_of
from optimum_slim.model.grids import move_grids
from optimum_slim.model.shape import BlockShape, Shape, shape_of, write_shape
from optimum_slim.model.sparsity import move_blocks
from optimum_slim.model.streamed import move_places


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keeps only the blocks numbered in `kept`, in this order, and numbers them anew for the cache."""
    anatomy, blocks, sizes = anatomy_of(model), block_list(model), shape_of(model)
    names = [block.name for block in blocks_of(model)]
    layer_types = getattr(model.config, "layer_types", None)
    model.base_model.set_submodule(anatomy.blocks, nn.ModuleList(blocks[index] for index in kept))
    if anatomy.layer_index:
        for block in blocks_of(model):
            owner, _, attribute = anatomy.layer_index.rpartition(".")
            setattr(attrgetter(owner)(block.module), attribute, block.index)
    setattr(model.config, anatomy.layers_key, len(kept))
    if layer_types is not None:
        model.config.layer_types = [layer_types[index] for index in kept]
    moved: dict[str, str | None] = dict.fromkeys(names)
    moved |= {names[index]: names[place] for place, index in enumerate(kept)}
    move_blocks(model.config, moved)
    move_grids(model, moved)
    move_places(model, moved)
    write_shape(model.config, Shape(tuple(sizes.blocks[index] for index in kept), sizes.head_dim))


def keep_neurons(model: PreTrainedModel, index: int, kept: Sequence[int]) -> None:
    """Keeps only the feed-forward neurons numbered in `kept` of block `index`."""
    block = _block(model, index)
    for linear in block.ffn_in:
        _keep_outputs(linear, kept)
    _keep_inputs(block.ffn_out, kept)
    _record(model)


def keep_heads(model: PreTrainedModel, index: int, kept: Sequence[int]) -> None:
    """Keeps only the query heads numbered in `kept` of block `index`, and the key/value heads that they read.

    Where several query heads share a key/value head, each key/value head that stays must keep as many of them.

    Raises:
        ValueError: key/value heads would keep different numbers of query heads.
    """
    block, shape = _block(model, index), shape_of(model)
    sizes = shape.blocks[index]
    group = sizes.heads // sizes.kv_heads
    kv_kept = sorted({head // group for head in kept})
    readers = [[head for head in kept if head // group == kv] for kv in kv_kept]
    if len({len(heads) for heads in readers}) != 1:
        raise ValueError(f"block {index}: key/value heads would keep different numbers of query heads: {readers}")
    query_rows = _rows([head for heads in readers for head in heads], shape.head_dim)
    kv_rows = _rows(kv_kept, shape.head_dim)
    if len(block.projections) == 1:
        width = sizes.heads * shape.head_dim
        _keep_outputs(block.projections[0], [row + part * width for part in range(3) for row in query_rows])
    else:
        query, key, value = block.projections
        _keep_outputs(query, query_rows)
        _keep_outputs(key, kv_rows)
        _keep_outputs(value, kv_rows)
    _keep_inputs(block.output, query_rows)
    _count_heads(block, len(kept), len(kv_kept), shape.head_dim)
    _record(model)


def merge_kv_heads(model: PreTrainedModel, index: int, kv_heads: int) -> None:
    """Averages neighbouring key/value heads of block `index` until `kv_heads` are left; every query head stays
    (grouped-query attention, arXiv:2305.13245, section 2.1: mean pooling).

    Raises:
        ValueError: `kv_heads` does not divide the key/value heads there are.
    """
    block, shape = _block(model, index), shape_of(model)
    sizes = shape.blocks[index]
    if sizes.kv_heads % kv_heads:
        raise ValueError(f"block {index}: {sizes.kv_heads} key/value heads cannot merge evenly into {kv_heads}")
    for linear in block.projections[1:]:
        for name in ("weight", "bias"):
            old = getattr(linear, name)
            if old is not None:
                split = old.data.unflatten(0, (kv_heads, sizes.kv_heads // kv_heads, shape.head_dim))
                _replace(linear, name, split.mean(1).flatten(0, 1))
        linear.out_features = kv_heads * shape.head_dim
    _count_heads(block, sizes.heads, kv_heads, shape.head_dim)
    _record(model)


def reshape(model: PreTrainedModel, shape: Shape) -> None:
    """Gives a model this shape by keeping the first of everything: for an empty model that weights are loaded into,
    or one on the meta device whose size is asked for."""
    if len(shape.blocks) != len(block_list(model)):
        keep_layers(model, range(len(shape.blocks)))
    for index, wanted in enumerate(shape.blocks):
        reshape_block(model, index, wanted)


def reshape_block(model: PreTrainedModel, index: int, wanted: BlockShape) -> None:
    """Gives block `index` these sizes, as `reshape`."""
    sizes = shape_of(model).blocks[index]
    if wanted.ffn != sizes.ffn:
        keep_neurons(model, index, range(wanted.ffn))
    if (wanted.heads, wanted.kv_heads) == (sizes.heads, sizes.kv_heads):
        return
    if wanted.heads == sizes.heads:
        _resize_kv(model, index, wanted.kv_heads)
        return
    group, wanted_group = sizes.heads // sizes.kv_heads, wanted.heads // wanted.kv_heads
    keep_heads(model, index, [kv * group + q for kv in range(wanted.kv_heads) for q in range(wanted_group)])


def _resize_kv(model: PreTrainedModel, index: int, kv_heads: int) -> None:
    block, head_dim = _block(model, index), shape_of(model).head_dim
    heads = shape_of(model).blocks[index].heads
    for linear in block.projections[1:]:
        _keep_outputs(linear, range(kv_heads * head_dim))
    _count_heads(block, heads, kv_heads, head_dim)
    _record(model)


def _record(model: PreTrainedModel) -> None:
    write_shape(model.config, shape_of(model))


def _block(model: PreTrainedModel, index: int) -> Block:
    return list(blocks_of(model))[index]


def _rows(heads: Sequence[int], head_dim: int) -> list[int]:
    return [head * head_dim + offset for head in heads for offset in range(head_dim)]


def _count_heads(block: Block, heads: int, kv_heads: int, head_dim: int) -> None:
    values = {"heads": heads, "width": heads * head_dim, "queries_per_kv": heads // kv_heads}
    for attribute, meaning in block.anatomy.counts.items():
        setattr(block.attention, attribute, values[meaning])


def _keep_outputs(linear: nn.Module, kept: Sequence[int]) -> None:
    transposed = isinstance(linear, Conv1D)
    _select(linear, "weight", 1 if transposed else 0, kept)
    if linear.bias is not None:
        _select(linear, "bias", 0, kept)
    setattr(linear, "nf" if transposed else "out_features", len(kept))


def _keep_inputs(linear: nn.Module, kept: Sequence[int]) -> None:
    transposed = isinstance(linear, Conv1D)
    _select(linear, "weight", 0 if transposed else 1, kept)
    setattr(linear, "nx" if transposed else "in_features", len(kept))


def _select(linear: nn.Module, name: str, dim: int, kept: Sequence[int]) -> None:
    old = getattr(linear, name)
    _replace(linear, name, old.data.index_select(dim, torch.tensor(list(kept), device=old.device)))


def _replace(linear: nn.Module, name: str, value: torch.Tensor) -> None:
    setattr(linear, name, nn.Parameter(value.contiguous(), requires_grad=getattr(linear, name).requires_grad))

"""How large each block of a model is: read from its tensors or its config, and written to the config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from optimum_slim.errors import ModelError
from optimum_slim.model.anatomy import Anatomy, anatomy_of, blocks_of
from optimum_slim.model.hook import QUANT_METHOD, SLIM_VERSION


@dataclass(frozen=True)
class BlockShape:
    """The sizes of one block, in heads and neurons."""

    heads: int  # query heads
    kv_heads: int  # key/value heads; equal to `heads` except in grouped-query attention
    ffn: int  # neurons of the feed-forward layer


@dataclass(frozen=True)
class Shape:
    """The sizes of every block. With the stock config it is enough to build the empty model again."""

    blocks: tuple[BlockShape, ...]
    head_dim: int

    def with_each(self, change: Callable[[BlockShape], BlockShape], ignore: Sequence[int] = ()) -> Shape:
        """The shape with all blocks changed but those of `ignore`, whose numbers may count from the end."""
        count = len(self.blocks)
        left = {index + count if index < 0 else index for index in ignore}
        blocks = (block if index in left else change(block) for index, block in enumerate(self.blocks))
        return replace(self, blocks=tuple(blocks))


def out_features(linear: nn.Linear | Conv1D) -> int:
    """Outputs of an `nn.Linear`, or of a `Conv1D`, which keeps its weight transposed."""
    return linear.weight.shape[1 if isinstance(linear, Conv1D) else 0]


def in_features(linear: nn.Linear | Conv1D) -> int:
    """Inputs of an `nn.Linear` or a `Conv1D`."""
    return linear.weight.shape[0 if isinstance(linear, Conv1D) else 1]


def head_dim_in(config: PretrainedConfig) -> int:
    """Size of one head, as the stock class of this config computes it."""
    heads = getattr(config, anatomy_of(config).heads_key)
    return getattr(config, "head_dim", None) or config.hidden_size // heads


def shape_of(model: PreTrainedModel) -> Shape:
    """The true shape of a model, read from its tensors."""
    head_dim = head_dim_in(model.config)
    blocks = []
    for block in blocks_of(model):
        heads = in_features(block.output) // head_dim
        key = block.projections[1] if len(block.projections) == 3 else None
        kv_heads = out_features(key) // head_dim if key is not None else heads
        blocks.append(BlockShape(heads, kv_heads, in_features(block.ffn_out)))
    return Shape(tuple(blocks), head_dim)


def shape_in(config: PretrainedConfig) -> Shape:
    """The shape that a config tells: the family's own keys, overridden by `per_layer_config`.

    Raises:
        ModelError: `per_layer_config` does not describe layers of this model.
    """
    version = (getattr(config, "slim", None) or {}).get("version", SLIM_VERSION)
    if version != SLIM_VERSION:
        raise ModelError(f"config.json: slim.version is {version!r}; this optimum-slim reads {SLIM_VERSION}")
    anatomy = anatomy_of(config)
    base = _base_block(config, anatomy)
    layers = getattr(config, anatomy.layers_key)
    overrides = getattr(config, "per_layer_config", None) or {}
    names = {"num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "intermediate_size": "ffn"}
    blocks = [base] * layers
    if not isinstance(overrides, dict):
        raise ModelError(f"config.json: per_layer_config must map layers to sizes, not be {overrides!r}")
    for index, sizes in overrides.items():
        if not str(index).isdecimal() or int(index) >= layers or not isinstance(sizes, dict):
            raise ModelError(f"config.json: per_layer_config.{index} does not name one of the {layers} layers")
        for key, value in sizes.items():
            if key not in names or type(value) is not int or value < 1:
                raise ModelError(f"config.json: per_layer_config.{index}.{key}: {value!r} is not a size of a layer")
        block = replace(base, **{names[key]: value for key, value in sizes.items()})
        if anatomy.kv_heads_key is None:
            block = replace(block, kv_heads=block.heads)
        if block.heads % block.kv_heads:
            raise ModelError(f"config.json: per_layer_config.{index}: kv heads must divide the {block.heads} heads")
        blocks[int(index)] = block
    return Shape(tuple(blocks), head_dim_in(config))


def write_shape(config: PretrainedConfig, shape: Shape) -> None:
    """Writes a shape into `config`, in place: under the family's own keys where transformers has a name for it
    (the same in all layers), else under `per_layer_config`."""
    anatomy = anatomy_of(config)
    setattr(config, anatomy.layers_key, len(shape.blocks))
    same_ffn = {block.ffn for block in shape.blocks}
    if len(same_ffn) == 1:
        setattr(config, anatomy.ffn_key, same_ffn.pop())
    same_heads = {(block.heads, block.kv_heads) for block in shape.blocks}
    if len(same_heads) == 1 and anatomy.reads_head_dim:
        heads, kv_heads = same_heads.pop()
        setattr(config, anatomy.heads_key, heads)
        config.num_key_value_heads = kv_heads
        config.head_dim = shape.head_dim
    base = _base_block(config, anatomy)
    overrides = {str(i): _difference(block, base, anatomy) for i, block in enumerate(shape.blocks)}
    config.per_layer_config = {index: sizes for index, sizes in overrides.items() if sizes}
    if not config.per_layer_config:
        del config.per_layer_config
    slim = {"version": SLIM_VERSION, **(getattr(config, "slim", None) or {})}
    if anatomy.causal and not anatomy.reads_head_dim:
        slim["head_dim"] = shape.head_dim
    config.slim = slim
    if hasattr(config, "per_layer_config"):
        config.quantization_config = {"quant_method": QUANT_METHOD, "version": SLIM_VERSION}
    elif hasattr(config, "quantization_config"):
        del config.quantization_config


def _base_block(config: PretrainedConfig, anatomy: Anatomy) -> BlockShape:
    heads = getattr(config, anatomy.heads_key)
    kv_heads = getattr(config, anatomy.kv_heads_key) if anatomy.kv_heads_key else heads
    ffn = getattr(config, anatomy.ffn_key) or 4 * config.hidden_size  # gpt2's n_inner may be null
    return BlockShape(heads, kv_heads, ffn)


def _difference(block: BlockShape, base: BlockShape, anatomy: Anatomy) -> dict[str, int]:
    sizes = {}
    if block.heads != base.heads:
        sizes["num_attention_heads"] = block.heads
    if anatomy.kv_heads_key and block.kv_heads != base.kv_heads:
        sizes["num_key_value_heads"] = block.kv_heads
    if block.ffn != base.ffn:
        sizes["intermediate_size"] = block.ffn
    return sizes

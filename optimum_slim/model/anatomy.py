"""Where each model family keeps its blocks, heads and feed-forward neurons: one row of names per family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.errors import ModelError


@dataclass(frozen=True)
class Anatomy:
    """Paths of modules seen from a block, and names of config keys. A new family is a new row in `ANATOMIES`."""

    blocks: str  # the ModuleList of blocks, seen from the base model
    attention: str  # the module whose attributes count heads
    projections: tuple[str, ...]  # query, key, value; or one linear that holds all three in this order
    output: str  # the linear that mixes the heads' results
    ffn_in: tuple[str, ...]  # the linears whose outputs are the neurons
    ffn_out: str  # the linear that reads the neurons
    norms: tuple[str, str] | None = None  # whose outputs projections, and ffn_in, alone read: of pre-norm families
    counts: dict[str, str] = field(default_factory=dict)  # attribute of `attention`: heads | width | queries_per_kv
    layers_key: str = "num_hidden_layers"
    heads_key: str = "num_attention_heads"
    ffn_key: str = "intermediate_size"
    kv_heads_key: str | None = None  # set where several query heads may read one key/value head
    reads_head_dim: bool = False  # the stock class takes `head_dim` from its config
    causal: bool = False
    layer_index: str | None = None  # attribute path, from the block, of the number that addresses the cache
    norms_first_key: str | None = None  # config key that tells whether `norms` stand there at all
    activation_key: str = "hidden_act"


_BERT = Anatomy(
    blocks="encoder.layer",
    attention="attention.self",
    projections=("attention.self.query", "attention.self.key", "attention.self.value"),
    output="attention.output.dense",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    counts={"num_attention_heads": "heads", "all_head_size": "width"},
)
_LLAMA = Anatomy(
    blocks="layers",
    attention="self_attn",
    projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    ffn_in=("mlp.gate_proj", "mlp.up_proj"),
    ffn_out="mlp.down_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
    counts={"num_key_value_groups": "queries_per_kv"},
    kv_heads_key="num_key_value_heads",
    reads_head_dim=True,
    causal=True,
    layer_index="self_attn.layer_idx",
)

ANATOMIES: dict[str, Anatomy] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": Anatomy(
        blocks="transformer.layer",
        attention="attention",
        projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        output="attention.out_lin",
        ffn_in=("ffn.lin1",),
        ffn_out="ffn.lin2",
        counts={"n_heads": "heads", "dim": "width"},
        layers_key="n_layers",
        heads_key="n_heads",
        ffn_key="hidden_dim",
        activation_key="activation",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": Anatomy(
        blocks="h",
        attention="attn",
        projections=("attn.c_attn",),
        output="attn.c_proj",
        ffn_in=("mlp.c_fc",),
        ffn_out="mlp.c_proj",
        norms=("ln_1", "ln_2"),
        counts={"num_heads": "heads", "split_size": "width"},
        layers_key="n_layer",
        heads_key="n_head",
        ffn_key="n_inner",
        causal=True,
        layer_index="attn.layer_idx",
        activation_key="activation_function",
    ),
    "opt": replace(
        _LLAMA,
        blocks="decoder.layers",
        output="self_attn.out_proj",
        ffn_in=("fc1",),
        ffn_out="fc2",
        norms=("self_attn_layer_norm", "final_layer_norm"),
        counts={"num_heads": "heads"},
        ffn_key="ffn_dim",
        kv_heads_key=None,
        reads_head_dim=False,
        norms_first_key="do_layer_norm_before",
        activation_key="activation_function",
    ),
}


def anatomy_of(source: PreTrainedModel | PretrainedConfig) -> Anatomy:
    """The row of a model's family.

    Raises:
        ModelError: the family has no row.
    """
    config = source.config if isinstance(source, PreTrainedModel) else source
    if config.model_type not in ANATOMIES:
        known = ", ".join(ANATOMIES)
        raise ModelError(f"models of type {config.model_type!r} are not supported; these are: {known}")
    return ANATOMIES[config.model_type]


def norms_first(config: PretrainedConfig) -> tuple[str, str] | None:
    """The norms that stand before attention and feed-forward, seen from a block, and that nothing else reads; None in
    families whose residuals read them.

    Raises:
        ModelError: the family has no row.
    """
    anatomy = anatomy_of(config)
    there = anatomy.norms_first_key is None or getattr(config, anatomy.norms_first_key)
    return anatomy.norms if there else None


@dataclass(frozen=True)
class Block:
    """One transformer block: its number, its modules by role, and their names in the whole model."""

    index: int
    name: str  # as in `named_modules()`, e.g. "bert.encoder.layer.0"
    module: nn.Module
    anatomy: Anatomy

    def __getattr__(self, role: str) -> Any:
        """`block.output`, `block.ffn_out`, `block.attention`: the module that plays this role."""
        path = getattr(self.anatomy, role)
        if isinstance(path, tuple):
            return tuple(attrgetter(part)(self.module) for part in path)
        return attrgetter(path)(self.module)

    def name_of(self, role: str) -> str:
        return f"{self.name}.{getattr(self.anatomy, role)}"

    def within(self, names: Iterable[str]) -> list[str]:
        """Those of the names that stand in this block."""
        return [name for name in names if name.startswith(f"{self.name}.")]


def block_list(model: PreTrainedModel) -> nn.ModuleList:
    """The module list that holds the blocks; what is put into it runs."""
    return attrgetter(anatomy_of(model).blocks)(model.base_model)


def blocks_of(model: PreTrainedModel) -> Iterator[Block]:
    """The blocks of a model, first to last."""
    anatomy = anatomy_of(model)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    for index, module in enumerate(block_list(model)):
        yield Block(index, f"{prefix}{anatomy.blocks}.{index}", module, anatomy)

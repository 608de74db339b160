"""Where a scale of channels can move from one module into the next, so that the model computes the same as before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from optimum_slim.model.anatomy import Block, blocks_of
from optimum_slim.model.shape import Shape, shape_of


@dataclass(frozen=True)
class Link:
    """Channels that one module writes and nothing but these linears reads, with only products and sums over tokens,
    heads' weights or a ReLU between, through which a positive scale passes."""

    writer: str  # a norm or a linear, as in `named_modules()`
    first: int  # of the writer's outputs, the one that is the first channel
    readers: tuple[str, ...]  # linears
    groups: tuple[int, int, int]  # how the readers' inputs lie: as [parts, copies of each, channels in a part]

    def shared(self, values: Tensor) -> Tensor:
        """The largest of what stands for each channel, as several inputs of a reader can be one channel.

        Args:
            values: [inputs of a reader].

        Returns:
            [channels].
        """
        return values.unflatten(0, self.groups).amax(1).flatten()

    @torch.no_grad()
    def move(self, model: PreTrainedModel, scale: Tensor) -> None:
        """Divides the channels by a scale where they are written, and multiplies them where they are read, in place.

        Args:
            scale: positive, float [channels].
        """
        writer: Any = model.get_submodule(self.writer)
        channels = slice(self.first, self.first + len(scale))
        for parameter in (writer.weight, getattr(writer, "bias", None)):
            if parameter is not None:
                rows = parameter.T if isinstance(writer, Conv1D) and parameter.ndim == 2 else parameter
                rows[channels].div_(scale.to(rows).view(-1, *[1] * (rows.ndim - 1)))
        parts, copies, size = self.groups
        inputs = scale.view(parts, 1, size).expand(parts, copies, size).flatten()
        for name in self.readers:
            weight = inputs_last(model.get_submodule(name))
            weight.mul_(inputs.to(weight))


def inputs_last(linear: Any) -> Tensor:
    """The weight of a linear as [outputs, inputs], in the memory where it lies."""
    return linear.weight.data.T if isinstance(linear, Conv1D) else linear.weight.data


def links_of(model: PreTrainedModel) -> list[Link]:
    """The links inside the blocks of a model, block by block: the norms before attention and feed-forward where no
    residual reads them, values to the output of attention, and neurons whose activation lets a scale through."""
    shape = shape_of(model)
    return [link for block in blocks_of(model) for link in _links(model.config, block, shape)]


def _links(config: PretrainedConfig, block: Block, shape: Shape) -> Iterator[Link]:
    anatomy, sizes = block.anatomy, shape.blocks[block.index]
    hidden = config.hidden_size
    projections = tuple(f"{block.name}.{path}" for path in anatomy.projections)
    ffn_in = tuple(f"{block.name}.{path}" for path in anatomy.ffn_in)
    norms_first = anatomy.norms_first_key is None or getattr(config, anatomy.norms_first_key)
    if anatomy.attention_norm and norms_first:
        yield Link(block.name_of("attention_norm"), 0, projections, (1, 1, hidden))
    whole = len(projections) == 1
    groups = (sizes.kv_heads, sizes.heads // sizes.kv_heads, shape.head_dim)
    first = 2 * sizes.heads * shape.head_dim if whole else 0
    yield Link(projections[-1], first, (block.name_of("output"),), groups)
    if anatomy.ffn_norm and norms_first:
        yield Link(block.name_of("ffn_norm"), 0, ffn_in, (1, 1, hidden))
    if len(ffn_in) > 1 or getattr(config, anatomy.activation_key) == "relu":
        yield Link(ffn_in[-1], 0, (block.name_of("ffn_out"),), (1, 1, sizes.ffn))

"""Where a scale of channels can move from one module into the next, so that the model computes the same as before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from optimum_slim.model.anatomy import Block, blocks_of, norms_first
from optimum_slim.model.matrices import matrix
from optimum_slim.model.shape import shape_of


@dataclass(frozen=True)
class Link:
    """Channels that one module writes and nothing but these linears reads, with only products and sums over tokens,
    heads' weights or a ReLU between, through which a positive scale passes."""

    writer: str  # a norm or a linear, as in `named_modules()`
    first: int  # of the writer's outputs, the one that is the first channel
    readers: tuple[str, ...]  # linears
    groups: tuple[int, int, int]  # how the readers' inputs lie: as [parts, copies of each, channels in a part]

    @property
    def copied(self) -> bool:
        """Whether several inputs of a reader are one channel, as where query heads share a value head."""
        return self.groups[1] > 1

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
            weight = matrix(model, name)
            weight.mul_(inputs.to(weight))


def links_of(model: PreTrainedModel) -> list[Link]:
    """The links inside the blocks of a model, block by block."""
    return [link for block in blocks_of(model) for link in links_in(model, block)]


def links_in(model: PreTrainedModel, block: Block) -> Iterator[Link]:
    """The links of a block: the norm before attention where no residual reads it, values to the output of attention,
    the norm before the feed-forward likewise, and neurons whose activation lets a scale through."""
    anatomy, shape = block.anatomy, shape_of(model)
    sizes, hidden = shape.blocks[block.index], (1, 1, model.config.hidden_size)
    projections = tuple(f"{block.name}.{path}" for path in anatomy.projections)
    ffn_in = tuple(f"{block.name}.{path}" for path in anatomy.ffn_in)
    norms = norms_first(model.config)
    if norms:
        yield Link(f"{block.name}.{norms[0]}", 0, projections, hidden)
    first = 2 * sizes.heads * shape.head_dim if len(projections) == 1 else 0
    groups = (sizes.kv_heads, sizes.heads // sizes.kv_heads, shape.head_dim)
    yield Link(projections[-1], first, (block.name_of("output"),), groups)
    if norms:
        yield Link(f"{block.name}.{norms[1]}", 0, ffn_in, hidden)
    if len(ffn_in) > 1 or getattr(model.config, anatomy.activation_key) == "relu":
        yield Link(ffn_in[-1], 0, (block.name_of("ffn_out"),), (1, 1, sizes.ffn))

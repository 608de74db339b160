"""What of a model is in memory at once: all of it, or one part."""

from __future__ import annotations

from typing import Literal

import psutil
from transformers import PreTrainedModel

from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.streamed import parts_of

Memory = Literal["auto", "whole", "streamed"]

COPIES = 3  # of fp32 weights that a run holds at its fullest: the model, its ONNX graph, and what is made of that
RUN_COPIES = 2  # of a file's weights that ONNX Runtime holds: as they stand there, and as its products want them


def fits(size: int) -> bool:
    """Whether ONNX Runtime can run a file of so many bytes in this machine's memory."""
    return RUN_COPIES * size <= psutil.virtual_memory().total


def streams(memory: Memory, model: PreTrainedModel) -> bool:
    """Whether a model of this size is to stay on the disk. `auto` asks for the machine's memory, not for what of it is
    free, so that the same machine always decides alike."""
    if memory != "auto":
        return memory == "streamed"
    return COPIES * 4 * sum(one.numel() for one in model.parameters()) > psutil.virtual_memory().total


def streamed_bytes(model: PreTrainedModel) -> int:
    """The weights of a streamed model that are in memory at once, with the same again for what becomes of a block.

    Args:
        model: an empty one will do.
    """
    parts, blocks = parts_of(model), [block.name for block in blocks_of(model)]
    sizes = {part: sum(4 * model.get_parameter(name).numel() for name in names) for part, names in parts.items()}
    largest = max(sizes[name] for name in blocks)
    return max(2 * largest, sum(size for part, size in sizes.items() if part not in blocks))

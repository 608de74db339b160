"""A linear's weight as a matrix [outputs, inputs], whichever way round the linear keeps it."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def matrix(model: PreTrainedModel, name: str) -> Tensor:
    """The weight of a linear as [outputs, inputs]: a view, so that what is written into it stands in the model."""
    return turned(model, name, model.get_parameter(f"{name}.weight").data)


def turned(model: PreTrainedModel, name: str, tensor: Tensor) -> Tensor:
    """A tensor of the shape of a linear's weight as [outputs, inputs], or from there as the linear keeps it: a view."""
    return tensor.movedim(axis_of(model.get_submodule(name)), 0)


def axis_of(linear: nn.Module) -> int:
    """The dimension of a linear's weight that counts outputs."""
    return 1 if isinstance(linear, Conv1D) else 0

"""What a weight is worth by itself and its input, after Wanda (arXiv:2306.11695)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.data.stream import blocks_in_turn, squares
from optimum_slim.model.matrices import matrix


def wanda_scores(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|W| * ||X|| (arXiv:2306.11695, eq. 1).

    Args:
        weight: [N, K]. input_norm: the norm of each input over all tokens, or its root mean square, [K].

    Returns:
        [N, K].
    """
    return weight.abs() * input_norm


def dense_scores(model: PreTrainedModel, names: Collection[str], batches: Batches) -> Iterator[dict[str, Tensor]]:
    """Wanda's scores of the linears in `names`, one block at a time, as long as nothing in the model changes."""
    for _, found in blocks_in_turn(model, names, batches, squares, changes=False):
        yield {name: wanda_scores(matrix(model, name), mean.sqrt()) for name, mean in found.items()}

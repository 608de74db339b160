"""How important is a group of inputs of a linear, which groups stay, and how the rest makes up for the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from optimum_slim.model.shape import Shape


def kept_of(total: int, ratio: float | None, keep: int | None, round_to: int = 1) -> int:
    """How many of `total` stay: `keep`, or what `ratio` leaves, rounded to a multiple of `round_to`, at least one
    multiple and at most all. A ratio of 0 keeps all, rounded or not."""
    if keep is not None:
        return min(keep, total)
    if not ratio:
        return total
    return min(total, max(round_to, round(total * (1 - ratio) / round_to) * round_to))


def mistakes_in_amount(ratio: float | None, keep: int | None) -> Iterator[str]:
    """Techniques that remove take exactly one of `ratio` and `keep`."""
    if (ratio is None) == (keep is None):
        yield "give either ratio (the share to remove, e.g. 0.25) or keep (how many stay)"
    if ratio is not None and not 0 <= ratio < 1:
        yield f"ratio must be at least 0 and below 1, not {ratio}"
    if keep is not None and keep < 1:
        yield f"keep must be at least 1, not {keep}"


def idle_layers(shape: Shape, ignore: Sequence[int]) -> Iterator[str]:
    """What is wrong with `ignore_layers` for a model of this shape, in words for the user."""
    count = len(shape.blocks)
    for index in ignore:
        if not -count <= index < count:
            yield f"ignore_layers: {index} is none of the {count} layers, which are 0 to {count - 1}, or -{count} to -1"


def group_energy(weight: Tensor, gram: Tensor, group: int) -> Tensor:
    """The mean squared output that each group of inputs causes by itself: sum over outputs of w_g C_gg w_g^T. For
    groups of one input this is the square of Wanda's |W| * ||X|| (arXiv:2306.11695, eq. 1), summed over outputs.

    Args:
        weight: [N, K]. gram: second moments of the inputs, [K, K] or larger. group: inputs in a group; divides K.

    Returns:
        [K / group].
    """
    inputs = weight.shape[1]
    parts = weight.unflatten(1, (inputs // group, group))
    blocks = gram[:inputs, :inputs].unflatten(0, (-1, group)).unflatten(2, (-1, group))
    own = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    return torch.einsum("ngi,gij,ngj->g", parts, own, parts)


def highest(scores: Tensor, count: int) -> list[int]:
    """The places of the `count` highest scores, in ascending order; of equal scores the first."""
    return sorted(torch.sort(scores, descending=True, stable=True).indices[:count].tolist())


def dense_weight(linear: nn.Linear | Conv1D) -> Tensor:
    """The weight as [outputs, inputs], float32; a bias is the weight of one more input that is always 1."""
    weight = linear.weight.data.T if isinstance(linear, Conv1D) else linear.weight.data
    return weight.float() if linear.bias is None else torch.cat([weight, linear.bias.data[:, None]], dim=1).float()


def refitted(weight: Tensor, gram: Tensor, kept: Sequence[int], damp: float = 1e-3) -> Tensor:
    """The weights of the kept inputs S that make up best for the others R, by least squares: what they already were and
    W_R C_RS (C_SS + damp * mean(diag C) I)^-1. Damped towards the old weights, so that it never does worse than they.

    Args:
        weight: [N, K]. gram: C, [K, K]. kept: S, places of inputs. damp: share of the mean second moment.

    Returns:
        float32 [N, len(kept)], solved in float64.
    """
    stay = torch.zeros(weight.shape[1], dtype=torch.bool)
    stay[list(kept)] = True
    moments, whole = gram.double().cpu(), weight.double().cpu()
    lost = whole[:, ~stay] @ moments[~stay][:, stay]
    return (whole[:, stay] + _ridge(moments[stay][:, stay], lost, damp * moments.diagonal().mean())).float()


def refit(linear: nn.Linear | Conv1D, weight: Tensor, gram: Tensor, kept: Sequence[int]) -> None:
    """Writes refitted weights, and bias where there is one, into a linear whose other inputs are already cut.

    Args:
        linear: the cut layer. weight, gram: of the whole layer, as `dense_weight` and `grams_in_turn` give them.
    """
    places = [*kept, weight.shape[1] - 1] if linear.bias is not None else list(kept)
    put(linear, refitted(weight, gram, places))


def made_up(weight: Tensor, gram: Tensor, cross: Tensor, damp: float = 0.1) -> Tensor:
    """The weight whose outputs also come closest to what is to be added to them, by ridge regression:
    W + D X (X^T X + damp * mean(diag X^T X) I)^-1, where D are the additions.

    Args:
        weight: [N, K]. gram: X^T X / rows, [K, K]. cross: D^T X / rows, [N, K]. damp: share of the mean second moment.

    Returns:
        float32 [N, K], solved in float64.
    """
    moments = gram.double().cpu()
    added = _ridge(moments, cross.double().cpu(), damp * moments.diagonal().mean())
    return (weight.double().cpu() + added).float()


def _ridge(moments: Tensor, cross: Tensor, pull: Tensor) -> Tensor:
    """cross (moments + pull I)^-1, where moments are [K, K] and cross is [N, K]."""
    inner = moments + torch.eye(len(moments), dtype=torch.float64) * pull
    return torch.linalg.solve(inner, cross.T).T


def put(linear: nn.Linear | Conv1D, weight: Tensor) -> None:
    """Writes a weight as `dense_weight` gives it, its bias too, into a linear of that size."""
    new = weight.to(linear.weight)
    if linear.bias is not None:
        linear.bias.data.copy_(new[:, -1])
        new = new[:, :-1]
    linear.weight.data.copy_(new.T if isinstance(linear, Conv1D) else new)

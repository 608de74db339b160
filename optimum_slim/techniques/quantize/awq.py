"""Give inputs that matter more of the integers: weights grow by what is taken from the norm or linear before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optimum_slim.model.anatomy import Block
from optimum_slim.model.grids import Grid
from optimum_slim.model.matrices import turned_by
from optimum_slim.techniques.quantize.rtn import rtn

STEPS = 20  # exponents that are tried


def products_and_sizes(rows: Tensor) -> Tensor:
    """X^T X and below it the sum of |x|: [K + 1, K], a statistic for `blocks_in_turn`."""
    return torch.cat([rows.T @ rows, rows.abs().sum(0, keepdim=True)])


def awq_scales(
    weight: Tensor, moment: Tensor, sizes: Tensor, bits: int, group_size: int | None, symmetric: bool
) -> Tensor:
    """What to multiply each input's weights by, and divide the input by, before they are rounded: sizes^alpha, with the
    alpha of 0, 1/20, .. 19/20 whose outputs are closest (AWQ, arXiv:2306.00978, eq. 4 and 5; scales normalized as in
    its published code).

    Args:
        weight: of all linears that read the input, one below the other, float [N, K]. moment: mean of x^T x, float
        [K, K]. sizes: mean of |x|, float [K]. bits, group_size, symmetric: as for `gptq`.

    Returns:
        float32 [K], above 0.
    """
    weight, sizes = weight.float(), sizes.float()
    best, least = torch.ones_like(sizes), float("inf")
    for step in range(STEPS):
        scales = sizes.pow(step / STEPS).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        q, scale, zero_point = rtn(weight * scales, bits, group_size, symmetric)
        off = Grid(scale, zero_point, bits, group_size).floats(q) / scales - weight
        error = float((off @ moment * off).sum())
        if error < least:
            best, least = scales, error
    return best


@dataclass(frozen=True)
class Fold:
    """A module whose outputs can be divided, and the linears that alone read them."""

    before: nn.Module  # a norm, or a linear
    readers: tuple[str, ...]  # names in the whole model


def folds_of(block: Block) -> Iterator[Fold]:
    """The places of a block where scales go without a trace: norm before linears; values before the output of attention
    where each head has its own; the linear that a gate multiplies before the one that reads the neurons."""
    anatomy = block.anatomy
    if anatomy.norms is not None:
        norms = [block.module.get_submodule(path) for path in anatomy.norms]
        for norm, paths in zip(norms, (anatomy.projections, anatomy.ffn_in), strict=True):
            yield Fold(norm, tuple(f"{block.name}.{path}" for path in paths))
    if len(anatomy.projections) == 3 and block.projections[2].weight.shape[0] == block.output.weight.shape[1]:
        yield Fold(block.projections[2], (block.name_of("output"),))
    if len(anatomy.ffn_in) == 2:
        yield Fold(block.ffn_in[1], (block.name_of("ffn_out"),))


@torch.no_grad()
def fold(before: nn.Module, readers: Sequence[nn.Module], scales: Tensor) -> None:
    """Divides a module's outputs and multiplies what reads them, in place: the block computes the same."""
    for tensor in before.parameters(recurse=False):
        outputs = turned_by(before, tensor) if tensor.ndim == 2 else tensor[:, None]
        outputs.div_(scales.to(outputs)[:, None])
    for reader in readers:
        weight = turned_by(reader, reader.get_parameter("weight"))
        weight.mul_(scales.to(weight))

"""How much leaves each linear, when not all are to lose the same share: decided by a look at the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from optimum_slim.techniques.sparsify.masks import block_sums

MOST = 0.99  # share that may leave a linear; without the rest it would be silent
POINTS = 513  # quantiles that are kept of each linear's scores
OUTLIER = 5.0  # OWL's M: a score above so many times the mean of its block
WITHIN = 0.08  # OWL's lambda: blocks differ by at most twice this share

Scores = Iterable[Mapping[str, Tensor]]  # of linears by name, [N, K] each, at least 0, one block at a time


def allocated(
    allocation: str, ratio: float, pattern: str, names: Sequence[str], scores: Scores, by_row: bool = False
) -> dict[str, float]:
    """The share that leaves each linear, `ratio` over all.

    Args:
        allocation: `uniform`, which does not look at `scores`; `global`; or `owl`. names: of the linears.
        by_row: as many blocks leave each row, so shares are made to fit whole blocks of a row.
    """
    if allocation == "uniform":
        return dict.fromkeys(names, ratio)
    look = _Look(pattern)
    for block in scores:
        look.add(block)
    sizes = np.array([look.sizes[name] for name in names], dtype=np.float64)
    if allocation == "global":
        shares = global_shares(np.stack([look.quantiles[name] for name in names]), sizes, ratio)
    else:
        shares = owl_shares(np.array([look.outliers[name] for name in names]), sizes, ratio)
    if by_row:
        shares = in_whole_blocks(shares, sizes, [look.columns[name] for name in names])
    return dict(zip(names, shares.tolist(), strict=True))


def global_shares(quantiles: np.ndarray, sizes: np.ndarray, ratio: float) -> np.ndarray:
    """What leaves when one threshold holds for all linears.

    Args:
        quantiles: evenly spaced ones of each linear's scores, lowest first, [linears, points]; scores are divided by
        their mean before, so that linears compare whose inputs differ in size. sizes: weights of each, [linears].

    Returns:
        The share of each, at most `MOST`.
    """
    heights = np.linspace(0, 1, quantiles.shape[1])
    return _levelled(
        lambda threshold: np.array([np.interp(threshold, one, heights) for one in quantiles]),
        sizes,
        ratio,
        (0.0, float(quantiles.max())),
    )


def owl_shares(outliers: np.ndarray, sizes: np.ndarray, ratio: float) -> np.ndarray:
    """What leaves when blocks with more outliers keep more (OWL, arXiv:2310.05175, section 3.2).

    Args:
        outliers: the share of outliers in each linear's block, [linears]. sizes: weights of each, [linears].

    Returns:
        The share of each linear; those of one block lose the same.
    """
    spread = outliers.max() - outliers.min()
    more = 2 * WITHIN * (outliers - outliers.min()) / (spread or 1.0)
    return _levelled(lambda level: level - more, sizes, ratio, (-1.0, 2.0))


def in_whole_blocks(shares: np.ndarray, sizes: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """Shares that are whole blocks of a row; what rounding owes one linear, the next pays.

    Args:
        shares, sizes: as above. columns: blocks in a row of each linear.

    Returns:
        Shares that rounding down turns into those blocks.
    """
    whole, owed = [], 0.0
    for share, size, count in zip(shares, sizes, columns, strict=True):
        asked = share * size + owed
        blocks = min(max(round(asked / size * count), 0), count - 1)
        owed = asked - blocks / count * size
        whole.append((blocks + 0.5) / count)
    return np.array(whole)


def _levelled(
    shares_at: Callable[[float], np.ndarray], sizes: np.ndarray, ratio: float, between: tuple[float, float]
) -> np.ndarray:
    """The shares at the level where together they are `ratio` of all weights; they rise with the level."""
    most = max(MOST, ratio)

    def capped(level: float) -> np.ndarray:
        return np.clip(shares_at(level), 0.0, most)

    low, high = between
    for _ in range(60):
        middle = (low + high) / 2
        if sizes @ capped(middle) < ratio * sizes.sum():
            low = middle
        else:
            high = middle
    return capped(high)


class _Look:
    """What is kept of the scores of a whole model: a few hundred numbers a linear."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.sizes: dict[str, int] = {}
        self.columns: dict[str, int] = {}
        self.quantiles: dict[str, np.ndarray] = {}
        self.outliers: dict[str, float] = {}

    def add(self, block: Mapping[str, Tensor]) -> None:
        """Looks at the linears of one block."""
        total = sum(score.numel() for score in block.values())
        mean = sum(float(score.double().sum()) for score in block.values()) / total
        outliers = sum(int((score > OUTLIER * mean).sum()) for score in block.values()) / total
        for name, score in block.items():
            sums = block_sums(score, self.pattern)
            ordered = sums.flatten().sort().values
            places = torch.linspace(0, len(ordered) - 1, POINTS, dtype=torch.float64).round().long()
            scale = float(ordered.double().mean()) or 1.0
            self.sizes[name], self.columns[name] = score.numel(), sums.shape[1]
            self.quantiles[name] = (ordered[places.to(ordered.device)].double() / scale).cpu().numpy()
            self.outliers[name] = outliers

"""Shares that differ between linears add up to the ratio that is asked for, and follow the scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optimum_slim.techniques.sparsify.allocation import allocated, global_shares, in_whole_blocks, owl_shares
from optimum_slim.techniques.sparsify.masks import block_sums, lowest

RATIOS = (0.3, 0.5, 0.8, 0.95)


def scored(blocks=4):
    """Scores of three linears in each block, of very different sizes and with more outliers from block to block."""
    generator = torch.Generator().manual_seed(0)
    for block in range(blocks):
        sizes = {"query": (32, 64), "up": (128, 64), "down": (64, 128)}
        scores = {f"{block}.{name}": torch.randn(size, generator=generator).abs() * 10.0**block
                  for name, size in sizes.items()}  # fmt: skip
        for one in scores.values():
            one.view(-1)[torch.randperm(one.numel(), generator=generator)[: 20 * block]] *= 30
        yield scores


NAMES = [name for block in scored() for name in block]
SCORES = {name: one for block in scored() for name, one in block.items()}
SIZES = np.array([SCORES[name].numel() for name in NAMES], dtype=float)


def published_owl(ratio, wide=0.08, outlier=5):
    """The share that leaves each block, as in OWL's code: it speaks of what stays."""
    stay = []
    for block in scored():
        flat = torch.cat([one.flatten() for one in block.values()])
        stay.append(float((flat > outlier * flat.mean()).sum()) / flat.numel() * 100)
    stay = np.array(stay)
    stay = (stay - stay.min()) * (1 / (stay.max() - stay.min()) * wide * 2)
    return 1 - (stay - stay.mean() + (1 - ratio))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "4x4"])
@pytest.mark.parametrize("allocation", ["global", "owl"])
@pytest.mark.parametrize("by_row", [False, True])
def test_what_leaves_is_what_was_asked_for(allocation, pattern, ratio, by_row):
    shares = allocated(allocation, ratio, pattern, NAMES, scored(), by_row)
    gone = sum(int(lowest(SCORES[name], share, pattern, by_row).sum()) for name, share in shares.items())
    assert gone / SIZES.sum() == pytest.approx(ratio, abs=0.005)
    assert len({round(share, 3) for share in shares.values()}) > 1


def test_uniform_does_not_look():
    def never():
        raise AssertionError
        yield

    assert allocated("uniform", 0.3, "4x1", ["a", "b"], never()) == {"a": 0.3, "b": 0.3}


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_owl_is_the_published_formula(ratio):
    shares = allocated("owl", ratio, "unstructured", NAMES, scored())
    assert np.allclose([shares[name] for name in NAMES], np.repeat(published_owl(ratio), 3))


def test_blocks_with_more_outliers_keep_more_and_differ_by_at_most_twice_lambda():
    shares = list(allocated("owl", 0.5, "4x1", NAMES, scored()).values())
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] == pytest.approx(0.16)


def test_without_outliers_owl_is_uniform():
    assert owl_shares(np.zeros(5), np.ones(5), 0.6) == pytest.approx(np.full(5, 0.6))


@pytest.mark.parametrize("pattern", ["unstructured", "4x2"])
def test_global_is_one_threshold_for_scores_over_their_mean(pattern):
    shares = allocated("global", 0.5, pattern, NAMES, scored())
    relative = {name: (sums := block_sums(SCORES[name], pattern)) / sums.mean() for name in NAMES}
    threshold = torch.cat([one.flatten() for one in relative.values()]).median()
    for name in NAMES:
        assert shares[name] == pytest.approx(float((relative[name] <= threshold).float().mean()), abs=0.01)


def test_nothing_loses_everything():
    quantiles = np.stack([np.linspace(0, 0.01, 513), np.linspace(0, 2, 513)])
    shares = global_shares(quantiles, np.array([100.0, 300.0]), 0.6)
    assert shares == pytest.approx([0.99, (0.6 * 400 - 99) / 300], abs=1e-6)


def test_linears_without_any_score_are_shared_out_too():
    nothing = [{"a": torch.zeros(4, 8), "b": torch.rand(4, 8)}]
    shares = allocated("global", 0.5, "unstructured", ["a", "b"], nothing)
    assert sum(shares.values()) == pytest.approx(1.0, abs=0.02)


def test_whole_blocks_of_rows_make_up_for_each_others_rounding():
    shares, sizes, columns = np.full(7, 0.35), np.full(7, 64.0), [4] * 7
    blocks = np.floor(in_whole_blocks(shares, sizes, columns) * columns)
    assert set(blocks) == {1, 2}
    assert blocks.sum() == round(0.35 * 4 * 7)

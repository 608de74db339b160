"""Zeros that move: the smallest weights leave, the right ones grow, and their number stays."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from optimum_slim.techniques.sparsify.evolve import SparsifyEvolve, cosine_share, erdos_renyi, moved
from optimum_slim.techniques.sparsify.masks import block_sums, lowest
from optimum_slim.training.trained import Step
from tests.techniques.sparsify.passes import RATIOS, sparse_bert, sparse_matrices, texts, trained, watched, zero_blocks
from tests.techniques.sparsify.reference import BLOCKS


@pytest.fixture(scope="module")
def data():
    return texts()


def test_small_linears_keep_more_of_themselves():
    shapes = [(64, 64), (128, 64), (512, 64), (8, 8)]
    kept = erdos_renyi(shapes, 0.05)
    sizes = [rows * columns for rows, columns in shapes]
    assert sum(share * size for share, size in zip(kept, sizes, strict=True)) == pytest.approx(0.05 * sum(sizes))
    relative = [share * rows * columns / (rows + columns) for share, (rows, columns) in zip(kept, shapes, strict=True)]
    assert relative == pytest.approx([relative[0]] * 4)
    crowded = erdos_renyi(shapes, 0.6)
    assert crowded[3] == 1.0
    assert max(crowded) == 1.0
    assert sum(share * size for share, size in zip(crowded, sizes, strict=True)) == pytest.approx(0.6 * sum(sizes))


def test_the_share_that_moves_falls_by_the_cosine():
    assert cosine_share(0.0, 0.3, 0.75) == 0.3
    assert cosine_share(0.375, 0.3, 0.75) == pytest.approx(0.15)
    assert cosine_share(0.25, 0.3, 0.75) == pytest.approx(0.3 / 2 * (1 + math.cos(math.pi / 3)))
    assert cosine_share(0.75, 0.3, 0.75) == cosine_share(1.0, 0.3, 0.75) == 0.0


def test_the_smallest_leave_and_the_most_wanted_grow_elsewhere():
    gone = torch.tensor([[True, False, True], [False, True, False]])
    sizes = torch.tensor([[0.0, 5.0, 0.0], [1.0, 0.0, 7.0]])
    wishes = torch.tensor([[2.0, 9.0, 3.0], [8.0, 1.0, 9.0]])
    after = moved(gone, sizes, wishes, 0.34, two_of_four=False)
    assert after.tolist() == [[True, False, False], [True, True, False]]
    assert torch.equal(moved(gone, sizes, wishes, 0.3, two_of_four=False), gone)  # less than one of three


def test_where_there_is_no_place_elsewhere_what_left_returns():
    gone = torch.tensor([[True, False, False, False]])
    assert int(moved(gone, torch.ones(1, 4), torch.ones(1, 4), 0.99, two_of_four=False).sum()) == 1


@pytest.mark.parametrize("columns", [4, 5, 6, 7, 32])
def test_each_four_keep_two_wherever_they_move(columns):
    draw = torch.Generator().manual_seed(0)
    gone = lowest(torch.rand(16, columns, generator=draw), 0.5, "2:4", by_row=False)
    padded = (0, -columns % 4)
    for share in (0.1, 0.5, 0.99):
        after = moved(gone, *torch.rand(2, 16, columns, generator=draw), share, two_of_four=True)
        kept = [torch.nn.functional.pad(~one, padded).unflatten(1, (-1, 4)).sum(2) for one in (gone, after)]
        assert torch.equal(*kept)
        assert columns < 7 or not torch.equal(after, gone)


@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("start", ["given", "random"])
@pytest.mark.parametrize("pattern", BLOCKS)
def test_the_topology_moves_and_keeps_as_many_blocks_in_each_linear(pattern, start, grow, data, tmp_path):
    given = start == "given"
    technique = SparsifyEvolve(
        pattern=pattern, start=start, ratio=None if given else RATIOS[pattern], grow=grow, every=2, end_=0.7
    )
    seen = []
    model = trained(watched(technique, seen), data, tmp_path, model=sparse_bert(pattern) if given else None)
    for name in seen[0]:
        counts = {int(block_sums((~zeros[name]).float(), pattern).bool().sum()) for zeros in seen[1:]}
        assert len(counts) == 1, "the number of blocks changes"
        moves = [not torch.equal(one[name], other[name]) for one, other in pairwise(seen)]
        assert any(moves), "nothing moves"
        assert not any(moves[8:]), "zeros move after the end"
    filled = [block_sums((one != 0).float(), pattern).unique().tolist() for one in sparse_matrices(model).values()]
    assert all(set(one) <= {0.0, float(math.prod(BLOCKS[pattern]))} for one in filled)
    if not given and pattern != "2:4":
        zeros = [zero_blocks(one, pattern) for one in sparse_matrices(model).values()]
        wanted = sum(one.numel() for one in zeros) * RATIOS[pattern]
        assert sum(int(one.sum()) for one in zeros) == pytest.approx(wanted, abs=len(zeros) / 2)


def test_without_zeta_nothing_moves(data, tmp_path):
    technique = SparsifyEvolve(pattern="4x1", zeta=0.0, every=1)
    model = trained(technique, data, tmp_path, model=sparse_bert("4x1"))
    for name, before in sparse_matrices(sparse_bert("4x1")).items():
        assert torch.equal(sparse_matrices(model)[name] == 0, before == 0)


def test_zeros_move_once_an_epoch_unless_told_otherwise(data, tmp_path):
    seen = []
    trained(watched(SparsifyEvolve(pattern="4x1"), seen), data, tmp_path, model=sparse_bert("4x1"))
    for name in seen[0]:
        moves = [not torch.equal(one[name], other[name]) for one, other in pairwise(seen)]
        assert [number for number, move in enumerate(moves, 2) if move] == [6]


def evolving(grow, gradients, pattern="4x1", **settings):
    """A linear before and after zeros have moved with these gradients, and its optimizer."""
    model, name = sparse_bert(pattern), "bert.encoder.layer.1.intermediate.dense"
    technique = SparsifyEvolve(pattern=pattern, grow=grow, every=1, end_=1.0, targets=(name,), **settings)
    torch.manual_seed(0)
    technique.begin(model, None)
    parameter = model.get_parameter(f"{name}.weight")
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    parameter.data.masked_fill_(technique.gone[name], 0)
    before = parameter.detach().clone()
    parameter.grad = gradients
    technique.before_step(model, Step(1, 1000, 1000, optimizer))
    return before, parameter.detach().clone(), optimizer.state[parameter]


def test_rigl_grows_where_the_gradient_is_largest_from_zero_and_without_memory():
    gradients = torch.randn(128, 64, generator=torch.Generator().manual_seed(1))
    before, after, memory = evolving("gradient", gradients)
    empty = zero_blocks(before, "4x1")
    left = zero_blocks(after, "4x1") & ~empty
    share = int(cosine_share(0.001, 0.3, 1.0) * int((~empty).sum()))
    sizes = block_sums(before.abs(), "4x1")
    assert int(left.sum()) == share
    assert sizes[left].max() <= sizes[~empty & ~left].min()
    wishes = block_sums(gradients.abs(), "4x1").masked_fill(~empty, 0)
    grown = torch.zeros_like(empty).flatten().index_fill(0, wishes.flatten().topk(share).indices, True).view_as(empty)
    changed = block_sums((memory["exp_avg"] == 0).float(), "4x1") == 4
    assert torch.equal(changed, left | grown)
    assert torch.equal(after == 0, (before == 0) | left.repeat_interleave(4, 1))


def test_sets_new_weights_are_small_and_drawn_by_the_seed():
    gradients = torch.zeros(128, 64)
    before, after, _ = evolving("random", gradients)
    _, again, _ = evolving("random", gradients)
    grown = (before == 0) & (after != 0)
    assert torch.equal(after, again)
    assert int(grown.sum()) == 4 * int(cosine_share(0.001, 0.3, 1.0) * 1024)
    size, kept = (float(one.square().mean().sqrt()) for one in (after[grown], before[before != 0]))
    assert size == pytest.approx(0.1 * kept, rel=0.1)

"""More and more zeros: how many at each step, which, and how many in the end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.techniques.sparsify.gradual import SparsifyGradual, cubic_ratio, lowest_of_all
from optimum_slim.techniques.sparsify.masks import lowest
from optimum_slim.training.trained import Step
from tests.techniques.sparsify.passes import (
    RATIOS,
    STEPS,
    sparse_bert,
    sparse_matrices,
    texts,
    trained,
    watched,
    zero_blocks,
)
from tests.techniques.sparsify.reference import BLOCKS
from tests.tiny import tiny


@pytest.fixture(scope="module")
def data():
    return texts()


SCHEDULES = [(0.8, 0, 0, 0.5), (0.9, 0.3, 0.1, 1), (0.5, 0.5, 0.2, 0.4)]


@pytest.mark.parametrize(("ratio", "start", "begin", "end"), SCHEDULES)
def test_the_ratio_rises_as_in_the_paper(ratio, start, begin, end):
    for time in np.linspace(begin, end, 9):
        wanted = ratio + (start - ratio) * (1 - (time - begin) / (end - begin)) ** 3  # n delta t is end - begin
        assert cubic_ratio(time, ratio, start, begin, end) == pytest.approx(wanted)
    assert cubic_ratio(begin / 2, ratio, start, begin, end) == pytest.approx(start)
    assert cubic_ratio(end, ratio, start, begin, end) == cubic_ratio(1.0, ratio, start, begin, end) == ratio


def test_the_lowest_leave_together_and_what_is_gone_or_stays_for_good_does_so():
    inf = torch.inf
    sums = [torch.tensor([[3.0, 1.0], [-inf, 4.0]]), torch.tensor([[2.0, inf, 0.5, 9.0]])]
    one, other = lowest_of_all(sums, 0.5)
    assert one.tolist() == [[False, True], [True, False]]
    assert other.tolist() == [[True, False, True, False]]
    assert [int(part.sum()) for part in lowest_of_all(sums, 0.0)] == [1, 0]
    assert not lowest_of_all(sums, 1.0)[1][0, 1]


@pytest.mark.parametrize("score", ["magnitude", "movement"])
@pytest.mark.parametrize("pattern", BLOCKS)
def test_in_the_end_each_linear_has_the_ratio(pattern, score, data, tmp_path):
    model = trained(SparsifyGradual(ratio=RATIOS[pattern], pattern=pattern, score=score, every=2), data, tmp_path)
    assert sparsity_in(model.config) == dict.fromkeys(SparsifyGradual(pattern=pattern).sparsified(model), pattern)
    for weight in sparse_matrices(model).values():
        zeros = zero_blocks(weight, pattern)
        assert int(zeros.sum()) == int(zeros.numel() * RATIOS[pattern])
        assert (weight != 0).sum() == (~zeros).sum() * math.prod(BLOCKS[pattern])
        assert pattern != "2:4" or set((weight != 0).unflatten(1, (-1, 4)).sum(2).unique().tolist()) == {2}


@pytest.mark.parametrize("score", ["magnitude", "movement"])
@pytest.mark.parametrize("pattern", ["unstructured", "4x2"])
def test_one_threshold_for_all_gives_the_ratio_over_all(pattern, score, data, tmp_path):
    technique = SparsifyGradual(ratio=0.8, pattern=pattern, score=score, allocation="global", every=2)
    zeros = [zero_blocks(one, pattern) for one in sparse_matrices(trained(technique, data, tmp_path)).values()]
    assert sum(int(one.sum()) for one in zeros) == int(sum(one.numel() for one in zeros) * 0.8)
    assert len({int(one.sum()) / one.numel() for one in zeros}) > 2
    assert all(not one.all() for one in zeros)


def test_zeros_rise_step_by_step_and_by_magnitude_none_returns(data, tmp_path):
    seen = []
    technique = SparsifyGradual(ratio=0.8, start_ratio=0.2, begin_=0.25, end_=0.75, every=2)
    trained(watched(technique, seen), data, tmp_path)
    assert len(seen) == STEPS
    for number, zeros in enumerate(seen, 1):
        last = max([3, *(n for n in range(4, 10) if n <= number and (n % 2 == 0 or n == 9))])
        wanted = cubic_ratio(last / STEPS, 0.8, 0.2, 0.25, 0.75) if number > 3 else 0.2
        for name, one in zeros.items():
            assert int(one.sum()) == int(one.numel() * wanted)
            assert number == 1 or not (seen[number - 2][name] & ~one).any()


def test_the_score_of_movement_is_the_papers_sum_and_what_left_returns_with_the_value_it_had():
    model, name = tiny("bert"), "bert.encoder.layer.0.output.dense"
    technique = SparsifyGradual(ratio=0.5, end_=1.0, every=1, score="movement", targets=(name,))
    technique.begin(model, None)
    parameter, draw = model.get_parameter(f"{name}.weight"), torch.Generator().manual_seed(0)
    dense, scores = parameter.detach().clone(), torch.zeros_like(parameter)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    returned = 0
    for number in range(1, 9):
        parameter.grad = torch.randn(parameter.shape, generator=draw)
        scores -= dense * parameter.grad
        before = technique.gone[name]
        technique.before_step(model, Step(number, 8, 8, optimizer))
        gone = lowest(scores, cubic_ratio(number / 8, 0.5, 0, 0, 1), "unstructured", by_row=False)
        assert torch.equal(technique.gone[name], gone)
        assert torch.equal(parameter.data, dense.masked_fill(gone, 0))
        returned += int((before & ~gone).sum())
    assert returned > 0


def test_zeros_of_an_earlier_step_stay(data, tmp_path):
    for technique in (SparsifyGradual(ratio=0.7, pattern="4x1"), SparsifyGradual(ratio=0.4, pattern="4x1"),
                      SparsifyGradual(ratio=0.7, pattern="4x1", score="movement")):  # fmt: skip
        before = sparse_matrices(sparse_bert("4x1"))
        after = sparse_matrices(trained(technique, data, tmp_path / str(id(technique)), model=sparse_bert("4x1")))
        for name, weight in after.items():
            assert (weight[before[name] == 0] == 0).all()
            zeros = zero_blocks(weight, "4x1")
            assert int(zeros.sum()) == int(zeros.numel() * max(technique.ratio, 0.5))

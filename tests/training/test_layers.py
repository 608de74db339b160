"""A student's layers are spread over the teacher's."""

from __future__ import annotations

import pytest

from optimum_slim.training.layers import absent, spread


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (3, 3, {0: 0, 1: 1, 2: 2, 3: 3}),
        (3, 6, {0: 0, 1: 2, 2: 4, 3: 6}),
        (4, 6, {0: 0, 1: 1, 2: 3, 3: 4, 4: 6}),
        (1, 12, {0: 0, 1: 12}),
        (6, 3, {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3}),
    ],
)
def test_layers_are_spread_so_that_first_follows_first_and_last_follows_last(student, teacher, pairs):
    assert spread(student, teacher) == pairs


@pytest.mark.parametrize("first", [0, 1])
def test_pairs_that_are_not_there_are_told_with_those_that_are(first):
    assert not list(absent({first: first, 3: 6}, first, 3, 6))
    wrong = {first - 1: 1, 4: 1, 1: 7}
    told = list(absent(wrong, first, 3, 6))
    assert len(told) == len(wrong)
    assert told[1] == f"layers: {{4: 1}} is not there; the model has layers {first} to 3, its teacher {first} to 6"

"""A config tells which tokens a smaller vocabulary kept, and with it which of a teacher's tokens each of them is."""

import pytest
from transformers import BertConfig

from optimum_slim.errors import ModelError
from optimum_slim.model.vocabulary import kept_tokens_in, teacher_tokens

KEPT = [0, 1, 5, 3]


def config(size, kept=None):
    return BertConfig(vocab_size=size, **({} if kept is None else {"slim": {"version": 1, "kept_tokens": kept}}))


PAIRS = {
    "the same": (config(8), config(8), None),
    "the same, cut": (config(4, KEPT), config(4, KEPT), None),
    "cut": (config(4, KEPT), config(8), KEPT),
    "both cut": (config(2, [5, 1]), config(4, KEPT), [2, 1]),
    "a teacher with rows that pad": (config(6), config(8), [0, 1, 2, 3, 4, 5]),
    "a model with rows that pad": (config(8), config(6), [0, 1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize(("student", "teacher", "found"), PAIRS.values(), ids=PAIRS)
def test_each_token_of_the_student_is_one_of_the_teachers(student, teacher, found):
    tokens = teacher_tokens(student, teacher)
    assert (tokens if tokens is None else tokens.tolist()) == found


LACKING = {
    "a teacher that is too small": (
        config(4, [0, 1, 9, 3]),
        config(8),
        "lacks 1 of the model's tokens, e.g. the one",
    ),
    "a teacher that was cut": (
        config(8),
        config(4, KEPT),
        "lacks 4 of the model's .*whose id was 2",
    ),
    "a teacher that was cut elsewhere": (config(2, [2, 3]), config(4, KEPT), "whose id was 2"),
}


@pytest.mark.parametrize(("student", "teacher", "told"), LACKING.values(), ids=LACKING)
def test_a_teacher_that_lacks_a_token_is_refused(student, teacher, told):
    with pytest.raises(ModelError, match=told):
        teacher_tokens(student, teacher)


@pytest.mark.parametrize("kept", ["all", [0, 1, 1, 2], [0, 1, 2], [0, 1, 2, -1], [0, 1, 2, True], [0, 1, 2, 3.0]])
def test_kept_tokens_that_make_no_sense_are_refused(kept):
    with pytest.raises(ModelError, match="kept_tokens must list 4 different ids"):
        kept_tokens_in(config(4, kept))

"""Hidden tokens: the same in every run, never a special one, each counted once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from optimum_slim.data.texts import Data
from optimum_slim.tasks.fill_mask import FillMask
from optimum_slim.tasks.task import IGNORED
from tests.tiny import SPECIAL, rows_for, tiny_config, tiny_tokenizer

MASK = SPECIAL.index("<mask>")
ROWS = Dataset.from_list([*rows_for("fill-mask", 20), {"text": "w9"}, {"text": "w9 w10 w11"}])


def task(family="roberta", data=None):
    return FillMask(tiny_config(family, "ForMaskedLM"), tiny_tokenizer(family), data or Data(max_length=32), None)


def test_hidden_tokens_are_the_labels_and_all_others_stay():
    hidden, plain = task().examples(ROWS), task().examples(ROWS, labelled=False)
    for masked, whole in zip(hidden, plain, strict=True):
        for shown, label, true in zip(masked["input_ids"], masked["labels"], whole["input_ids"], strict=True):
            assert (shown, label) in ((true, IGNORED), (MASK, true))
            assert label == IGNORED or true >= len(SPECIAL)


def test_about_a_seventh_of_the_words_is_hidden_and_at_least_one():
    counts = [sum(label != IGNORED for label in example["labels"]) for example in task().examples(ROWS)]
    assert counts == [round(0.15 * 24)] * 20 + [1, 1]


def test_the_same_tokens_are_hidden_in_every_run_also_under_a_limit():
    every = task().examples(ROWS)
    assert task().examples(ROWS) == every
    assert task().examples(ROWS, limit=3) == every[:3]
    assert len({tuple(example["labels"]) for example in every}) > 15


def test_texts_without_a_word_hide_nothing():
    (example,) = task().examples(Dataset.from_dict({"text": [""]}))
    assert example["labels"] == [IGNORED, IGNORED]


@pytest.mark.parametrize("side", ["right", "left"])
def test_masked_accuracy_is_over_tokens_not_texts(side):
    of = task()
    of.tokenizer.padding_side = side
    examples = of.examples(ROWS.select([0, 20]))
    batch = of.collate(examples)
    logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 128).float()
    logits[0, batch["labels"][0].argmax()] = 0  # one of four is guessed as token 0
    outcomes = of.outcomes(SimpleNamespace(logits=logits), batch)
    assert [sorted(one) for one in outcomes] == [[False, True, True, True], [True]]
    assert of.metrics(outcomes, examples, None) == {"masked_accuracy": 4 / 5}

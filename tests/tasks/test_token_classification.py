"""Labels of words: carried by a word's first token, judged by whole entities."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from optimum_slim.data.texts import Data
from optimum_slim.errors import DataError
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.task import IGNORED, pad_labels
from optimum_slim.tasks.token_classification import TokenClassification
from tests.tiny import tiny_config, tiny_tokenizer

NAMES = ("O", "B-PER", "I-PER")
O, B, I = range(3)  # noqa: E741


def task(data=None, family="bert"):
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    config = tiny_config(family, "ForTokenClassification", **labels)
    return TokenClassification(config, tiny_tokenizer(family), data or Data(), None)


def rows(*pairs):
    return Dataset.from_list([{"tokens": tokens, "labels": labels} for tokens, labels in pairs])


def test_a_words_first_token_carries_its_label():
    (example,) = task().examples(rows((["w9", "w10-w11", "w12"], [O, B, I])))
    tokens = ["<s>", "w9", "w10", "-", "w11", "w12", "</s>"]
    assert len(example["input_ids"]) == len(tokens)
    assert example["labels"] == [IGNORED, O, B, IGNORED, IGNORED, I, IGNORED]


def test_labels_may_be_names():
    (example,) = task().examples(rows((["w9", "w10"], ["O", "B-PER"])))
    assert example["labels"] == [IGNORED, O, B, IGNORED]


def test_labels_beyond_max_length_are_cut_with_their_words():
    (example,) = task(Data(max_length=4)).examples(rows((["w9"] * 10, [B] * 10)))
    assert example["labels"] == [IGNORED, B, B, IGNORED]


@pytest.mark.parametrize(
    ("truth", "guess", "f1"),
    [
        ([[B, I, O], [O, B]], [[B, I, O], [O, B]], 1.0),
        ([[B, I, O], [O, B]], [[B, I, O], [O, O]], 2 / 3),  # precision 1, recall 1/2
        ([[B, I, O], [O, B]], [[B, O, O], [O, B]], 1 / 2),  # half an entity is none
        ([[B, I, O], [O, B]], [[B, I, B], [O, B]], 4 / 5),  # precision 2/3, recall 1
        ([[B, B, O]], [[B, I, O]], 0.0),  # two entities are not one
        ([[O, O]], [[O, O]], 0.0),
    ],
)
def test_f1_is_of_whole_entities(truth, guess, f1):
    examples = [{"labels": [IGNORED, *labels, IGNORED]} for labels in truth]
    outcomes = [[B, *labels, B] for labels in guess]  # what is said of special tokens does not count
    assert task().metrics(outcomes, examples, None) == {"f1": pytest.approx(f1)}


@pytest.mark.parametrize("side", ["right", "left"])
def test_outcomes_and_labels_fit_each_other_under_padding(side):
    of = task()
    of.tokenizer.padding_side = side
    examples = of.examples(rows((["w9", "w10", "w11"], [O, B, I]), (["w9"], [B])))
    batch = of.collate(examples)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert ((batch["labels"] != IGNORED) <= batch["attention_mask"].bool()).all()
    right = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 3).float()
    outcomes = of.outcomes(SimpleNamespace(logits=right), batch)
    assert of.metrics(outcomes, examples, None) == {"f1": 1.0}


def test_labels_are_padded_on_the_tokenizers_side():
    assert pad_labels([[1, 2], [1]], 3, "right").tolist() == [[1, 2, IGNORED], [1, IGNORED, IGNORED]]
    assert pad_labels([[1, 2], [1]], 3, "left").tolist() == [[IGNORED, 1, 2], [IGNORED, IGNORED, 1]]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ([O, B], [O, 3]),
        ([O, B], [O, -1]),
        ([O, B], [O]),
        ([O, B], [O, B, I]),
        ([O, B], None),
        (["O", "B-PER"], ["O", "PER"]),
    ],
)
def test_labels_that_do_not_fit_are_an_error_that_names_the_row(right, wrong):
    with pytest.raises(DataError, match=r"data\.label: row 2"):
        task().examples(rows((["w9", "w10"], right), (["w9", "w10"], wrong)))


@pytest.mark.parametrize(
    "columns",
    [
        {"tokens": [["w9"], None], "labels": [[O], [O]]},
        {"tokens": [["w9"], [None]], "labels": [[O], [O]]},
        {"text": ["w9"], "labels": [[O]]},
        {"premise": ["w9"], "hypothesis": ["w9"]},
        {"tokens": [["w9"]], "labels": [O]},
    ],
)
def test_rows_that_are_no_lists_of_words_are_a_data_error(columns):
    with pytest.raises(DataError):
        task().examples(Dataset.from_dict(columns))


def test_plain_text_is_good_enough_where_no_labels_are_wanted():
    (example,) = task().examples(Dataset.from_dict({"text": ["w9 w10"]}), labelled=False)
    assert example["input_ids"] == [0, 9, 10, 2]


def test_figures_need_labels():
    with pytest.raises(DataError, match=r"name it under data\.label"):
        Evaluation.of(task(), {"": Dataset.from_list([{"tokens": ["good"]}])})

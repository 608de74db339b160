"""Classifiers, several labels at once, numbers and rerankers: labels as the model counts them, figures by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from optimum_slim.data.texts import Data
from optimum_slim.errors import DataError
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.text_classification import TextClassification
from tests.tiny import tiny_config, tiny_tokenizer

THREE = {"id2label": {0: "bad", 1: "fine", 2: "good"}, "label2id": {"bad": 0, "fine": 1, "good": 2}}
SEVERAL = THREE | {"problem_type": "multi_label_classification"}
NUMBER = {"num_labels": 1}


def task(family="bert", data=None, **changes):
    config = tiny_config(family, "ForSequenceClassification", **changes)
    return TextClassification(config, tiny_tokenizer(family), data or Data(), None)


def figures(of, logits, labels):
    outcomes = of.outcomes(SimpleNamespace(logits=torch.tensor(logits)), {})
    return of.metrics(outcomes, [{"labels": label} for label in labels], None)


def test_accuracy_is_the_share_of_right_answers():
    logits = [[2.0, 0.0, 1.0], [0.0, 0.1, 0.2], [0.0, 5.0, 1.0], [9.0, 0.0, 1.0]]
    assert figures(task(**THREE), logits, [0, 2, 0, 0]) == {"accuracy": 0.75}


def test_f1_of_several_labels_counts_every_label_of_every_text():
    logits = [[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]
    labels = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    hits, extra, missed = 2, 2, 1
    assert figures(task(**SEVERAL), logits, labels) == {
        "f1_micro": pytest.approx(2 * hits / (2 * hits + extra + missed))
    }


def test_f1_is_zero_and_no_error_where_nothing_is_found():
    assert figures(task(**SEVERAL), [[-1.0, -1.0, -1.0]], [[0.0, 0.0, 0.0]]) == {"f1_micro": 0.0}


@pytest.mark.parametrize(
    ("scores", "labels", "quality"),
    [
        ([0.1, 0.2, 0.3, 0.9], [1.0, 2.0, 3.0, 5.0], 1.0),
        ([0.9, 0.3, 0.2, 0.1], [1.0, 2.0, 3.0, 5.0], -1.0),
        ([0.1, 0.2, 0.9, 0.3], [1.0, 2.0, 3.0, 5.0], 1 - 6 * 2 / (4 * 15)),  # Spearman: two ranks off by one
        ([0.5, 0.5, 0.5, 0.5], [1.0, 2.0, 3.0, 5.0], 0.0),  # constant answers rank nothing
        ([0.9, 0.8, 0.7, 0.1], [1.0, 0.0, 1.0, 0.0], (1 / 1 + 2 / 3) / 2),  # a reranker: average precision
        ([0.1, 0.8, 0.7, 0.1], [0.0, 1.0, 1.0, 0.0], 1.0),
    ],
)
def test_one_output_is_judged_by_how_it_ranks(scores, labels, quality):
    found = figures(task(**NUMBER), [[score] for score in scores], labels)
    assert found == {"rank_quality": pytest.approx(quality)}


def test_figures_need_labels():
    with pytest.raises(DataError, match=r"name it under data\.label"):
        Evaluation.of(task(), {"": Dataset.from_list([{"text": "good"}])})


@pytest.mark.parametrize(
    ("changes", "label", "counted"),
    [
        (THREE, "good", 2),
        (THREE, 1, 1),
        (THREE, 1.0, 1),
        (SEVERAL, [0, 1, 1], [0.0, 1.0, 1.0]),
        (SEVERAL, ["good", "bad"], [1.0, 0.0, 1.0]),
        (SEVERAL, [], [0.0, 0.0, 0.0]),
        (SEVERAL, [2], [0.0, 0.0, 1.0]),
        (NUMBER, 3, 3.0),
    ],
)
def test_labels_become_what_the_model_counts(changes, label, counted):
    rows = Dataset.from_list([{"text": "w9", "label": label}])
    (example,) = task(**changes).examples(rows)
    assert example["labels"] == counted


@pytest.mark.parametrize(
    ("changes", "right", "wrong"),
    [
        (THREE, "good", "great"),
        (THREE, 1, 3),
        (THREE, 1, -1),
        (THREE, 1.0, 1.5),
        (THREE, 1.0, float("nan")),
        (THREE, 1.0, float("inf")),
        (THREE, 1, None),
        (SEVERAL, ["good"], ["great"]),
        (SEVERAL, [1], [3]),
        (SEVERAL, ["good"], None),
        (NUMBER, 1.0, None),
    ],
)
def test_a_label_that_the_model_lacks_is_an_error_that_names_its_row(changes, right, wrong):
    rows = Dataset.from_list([{"text": "w9", "label": right}, {"text": "w9", "label": wrong}])
    with pytest.raises(DataError, match=r"data\.label: row 2, column label is "):
        task(**changes).examples(rows)


def test_lists_of_lists_are_no_labels():
    with pytest.raises(DataError, match="row 2"):
        task(**SEVERAL).label([[1], [0], [1]], "row 2, column label")


def test_label_errors_list_the_labels_there_are():
    with pytest.raises(DataError, match="the model's labels are bad, fine, good"):
        task(**THREE).examples(Dataset.from_list([{"text": "w9", "label": "great"}]))


def test_pairs_are_encoded_together():
    rows = Dataset.from_list([{"premise": "good w9", "hypothesis": "bad", "label": 0}])
    (example,) = task().examples(rows)
    assert example["input_ids"] == [0, 5, 9, 2, 6, 2]
    assert example["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_texts_are_cut_to_max_length_and_padded_to_their_longest():
    of = task(data=Data(max_length=6))
    examples = of.examples(Dataset.from_list([{"text": "w9 " * 50, "label": 0}, {"text": "w9", "label": 1}]))
    batch = of.collate(examples)
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["input_ids"][1].tolist() == [0, 9, 2, 1, 1, 1]
    assert batch["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("text", [None, 5])
def test_a_row_without_a_text_is_an_error_that_names_it(text):
    rows = Dataset.from_dict({"text": ["w9", None] if text is None else [4, text], "label": [0, 0]})
    with pytest.raises(DataError, match=r"data\.text: row [12], column text is "):
        task().examples(rows)

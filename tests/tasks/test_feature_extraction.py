"""Embedders: pooled as their files say, blind to padding, judged against the original and against scores of pairs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from optimum_slim.data.texts import Data
from optimum_slim.errors import DataError, ModelError
from optimum_slim.tasks.feature_extraction import FeatureExtraction, pool
from tests.tiny import rows_for, tiny_config, tiny_tokenizer

STATES = torch.tensor([[[1.0, -8.0], [3.0, -2.0], [8.0, -5.0]], [[2.0, -1.0], [4.0, -3.0], [99.0, 99.0]]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
POOLED = {
    "mean": [[4.0, -5.0], [3.0, -2.0]],
    "cls": [[1.0, -8.0], [2.0, -1.0]],
    "max": [[8.0, -2.0], [4.0, -1.0]],
    "lasttoken": [[8.0, -5.0], [4.0, -3.0]],
}


def task(folder, data=None):
    return FeatureExtraction(tiny_config("bert", "Model"), tiny_tokenizer("bert"), data or Data(), folder)


def pooling_file(folder, content):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("how", POOLED)
def test_pooling_passes_over_padding_on_either_side(how):
    assert pool(STATES, MASK, how).tolist() == POOLED[how]
    left_states = torch.stack([STATES[0], STATES[1].roll(1, 0)])
    left_mask = torch.stack([MASK[0], MASK[1].roll(1, 0)])
    assert left_mask.tolist() == [[1, 1, 1], [0, 1, 1]]
    assert pool(left_states, left_mask, how).tolist() == POOLED[how]


@pytest.mark.parametrize(
    ("content", "how"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_max_tokens": True, "word_embedding_dimension": 64}, "max"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "lasttoken"),
        ({"embedding_dimension": 64, "pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"embedding_dimension": 64, "pooling_mode": "lasttoken"}, "lasttoken"),
    ],
)
def test_the_models_own_files_say_how_to_pool(content, how, tmp_path):
    pooling_file(tmp_path, content)
    assert task(tmp_path).pooling == how


def test_models_without_such_files_take_the_mean(tmp_path):
    assert task(tmp_path).pooling == "mean"


@pytest.mark.parametrize(
    "content",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": ["cls", "mean"]},
        {},
        "{",
        "[]",
    ],
)
def test_another_pooling_is_a_model_error(content, tmp_path):
    pooling_file(tmp_path, content)
    with pytest.raises(ModelError, match="1_Pooling"):
        _ = task(tmp_path).pooling


def test_vectors_are_pooled_and_of_length_one(tmp_path):
    pooling_file(tmp_path, {"pooling_mode_max_tokens": True})
    vectors = task(tmp_path).outcomes(SimpleNamespace(last_hidden_state=STATES), {"attention_mask": MASK})
    assert np.allclose(vectors, torch.nn.functional.normalize(torch.tensor(POOLED["max"])), atol=1e-6)


def test_cosine_is_the_mean_over_texts_to_the_originals_vectors(tmp_path):
    vectors = [np.array([1.0, 0.0]), np.array([0.6, 0.8])]
    original = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    examples = [{"input_ids": [5]}] * 2
    assert task(tmp_path).metrics(vectors, examples, original) == {"cosine": pytest.approx(0.9)}
    assert task(tmp_path).metrics(vectors, examples, None) == {"cosine": pytest.approx(1.0)}


def test_pairs_are_judged_by_how_their_cosines_rank(tmp_path):
    def at(degrees):
        return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])

    vectors = [at(angle) for pair in ((0, 10), (0, 40), (90, 60), (0, 80)) for angle in pair]
    scores = [5.0, 3.0, 2.0, 1.0]  # by cosine the second and third change places
    examples = [{"labels": score} for score in scores for _ in range(2)]
    found = task(tmp_path).metrics(vectors, examples, vectors)
    assert found == {"cosine": pytest.approx(1.0), "spearman": pytest.approx(1 - 6 * 2 / (4 * 15))}


def test_equal_scores_rank_nothing(tmp_path):
    vectors = [np.array([1.0, 0.0]), np.array([0.6, 0.8]), np.array([0.0, 1.0]), np.array([0.0, 1.0])]
    assert task(tmp_path).metrics(vectors, [{"labels": 1.0}] * 4, vectors)["spearman"] == 0.0


def test_a_pair_is_two_texts_and_a_limit_counts_pairs(tmp_path):
    rows = Dataset.from_list(rows_for("feature-extraction", 6))
    examples = task(tmp_path).examples(rows, limit=2)
    singles = [text for row in rows.select(range(2)) for text in (row["sentence1"], row["sentence2"])]
    assert [example["input_ids"] for example in examples] == tiny_tokenizer("bert")(singles)["input_ids"]
    assert [example["labels"] for example in examples] == [score for score in rows["score"][:2] for _ in range(2)]
    assert all("labels" not in example for example in task(tmp_path).examples(rows, labelled=False))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"sentence1": ["w9", "w9"], "sentence2": ["w9", None]}, "row 2, column sentence2"),
        ({"sentence1": ["w9", "w9"], "sentence2": ["w9", "w9"], "score": [1.0, None]}, "row 2, column score"),
        ({"sentence1": ["w9", "w9"], "sentence2": ["w9", "w9"], "score": ["1", "much"]}, "row 2, column score"),
    ],
)
def test_rows_that_are_no_pairs_with_scores_are_an_error_that_names_them(columns, reason, tmp_path):
    with pytest.raises(DataError, match=reason):
        task(tmp_path).examples(Dataset.from_dict(columns))

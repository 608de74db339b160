"""Decoders: blocks that do not overlap, perplexity as the formula says, agreement with the original token by token."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from optimum_slim.data.texts import Data
from optimum_slim.errors import DataError
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.samples import samples
from optimum_slim.tasks.text_generation import TextGeneration
from tests.tiny import DECODERS, rows_for, tiny, tiny_config, tiny_tokenizer

END = 2  # </s>, which stands between documents
ROWS = Dataset.from_list(rows_for("text-generation", 10))


def task(family="gpt2", length=16):
    return TextGeneration(tiny_config(family), tiny_tokenizer(family), Data(max_length=length), None)


def stream(rows, tokenizer):
    return [token for text in rows["text"] for token in [END, *tokenizer(text, add_special_tokens=False)["input_ids"]]]


@pytest.mark.parametrize("length", [2, 16, 25, 50])
def test_blocks_are_the_joined_documents_cut_without_overlap(length):
    of = task(length=length)
    joined = stream(ROWS, of.tokenizer)
    blocks = [example["input_ids"] for example in of.examples(ROWS)]
    count = (len(joined) - 1) // length
    assert blocks == [joined[i * length : (i + 1) * length] for i in range(count)]


def test_blocks_carry_labels_only_where_wanted_and_stop_at_the_limit():
    labelled, plain = task().examples(ROWS, limit=3), task().examples(ROWS, limit=3, labelled=False)
    assert len(labelled) == len(plain) == 3
    assert all(example["labels"] == example["input_ids"] for example in labelled)
    assert all("labels" not in example and example["attention_mask"] == [1] * 16 for example in plain)


@pytest.mark.parametrize("family", DECODERS)
def test_perplexity_is_that_of_each_block_by_itself_its_first_token_not_predicted(family):
    of, model = task(family), tiny(family)
    evaluation = Evaluation.of(of, {"": ROWS})
    joined = torch.tensor(stream(ROWS, of.tokenizer))
    total, tokens = 0.0, 0
    for start in range(0, len(joined) - 16, 16):
        block = joined[start : start + 16]
        with torch.no_grad():
            logits = model(block[None]).logits[0, :-1].double()
        total -= torch.log_softmax(logits, -1)[torch.arange(15), block[1:]].sum().item()
        tokens += 15
    for batch_size in (1, 4):
        assert evaluation.quality(model, batch_size) == {
            "perplexity": pytest.approx(math.exp(total / tokens), rel=1e-4)
        }


def test_perplexity_of_even_odds_is_their_number():
    of, ids = task(length=4), torch.tensor([[5, 6, 7, 8]])
    outcomes = of.outcomes(SimpleNamespace(logits=torch.zeros(1, 4, 128)), {"input_ids": ids})
    assert of.metrics(outcomes, [{}], None) == {"perplexity": pytest.approx(128.0)}


def test_a_hopeless_model_has_infinite_perplexity_and_no_error():
    of, ids = task(length=3), torch.tensor([[5, 6, 7]])
    logits = torch.nn.functional.one_hot(torch.tensor([[9, 9, 9]]), 128) * 1e4
    outcomes = of.outcomes(SimpleNamespace(logits=logits), {"input_ids": ids})
    assert of.metrics(outcomes, [{}], None) == {"perplexity": math.inf}


def test_next_token_agreement_is_the_share_of_equal_guesses():
    guesses = [np.array([1, 2, 3, 4]), np.array([5, 6, 7, 8])]
    original = [np.array([1, 2, 3, 9]), np.array([9, 9, 7, 8])]
    found = task().metrics([(1.0, one) for one in guesses], [{}] * 2, [(2.0, one) for one in original])
    assert found["next_token_agreement"] == pytest.approx(5 / 8)
    assert found["perplexity"] == pytest.approx(math.exp(2.0 / 8))


def test_divergence_is_that_of_the_odds_at_every_token_but_the_last():
    evaluation = Evaluation.of(task(), {"novels": ROWS})
    original, model = tiny("gpt2"), tiny("gpt2", initializer_range=0.19)
    direct, tokens = 0.0, 0
    for example in evaluation.sets["novels"]:
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            p, q = (torch.softmax(one(ids).logits[0, :-1].double(), -1) for one in (original, model))
        direct, tokens = direct + float((p * (p / q).log()).sum()), tokens + len(p)
    assert direct / tokens > 1e-4
    own = evaluation.quality(model)
    assert evaluation.compared(model, original) == own | {
        "kl_divergence/novels": pytest.approx(direct / tokens, rel=1e-3)
    }
    assert evaluation.compared(model, model) == own | {"kl_divergence/novels": 0.0}


def test_samples_are_what_each_model_writes_by_itself_some_of_each_set():
    evaluation = Evaluation.of(task(length=24), {"novels": ROWS, "mail": ROWS})
    models = {"original": tiny("gpt2"), "final": tiny("gpt2", initializer_range=0.1)}
    found = samples(evaluation, models)
    blocks = [evaluation.sets[name][at]["input_ids"] for name, at in (("novels", 0), ("mail", 0), ("novels", 1))]
    assert [row["prompt"] for row in found] == [
        evaluation.task.tokenizer.decode(block[:16], skip_special_tokens=True) for block in blocks
    ]
    for name, model in models.items():
        ids = torch.tensor([blocks[0][:16]])
        while ids.shape[1] < 48 and ids[0, -1] != END:
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert found[0][name] == evaluation.task.tokenizer.decode(ids[0, 16:], skip_special_tokens=True)
    assert found[0]["original"] != found[0]["final"]


def test_a_model_agrees_with_itself():
    evaluation = Evaluation.of(task(), {"": ROWS})
    outcomes = evaluation.outcomes(tiny("gpt2"))
    figures = Evaluation(evaluation.task, evaluation.sets, outcomes).metrics(outcomes)
    assert figures["next_token_agreement"] == 1.0


@pytest.mark.parametrize(
    ("vocabulary", "tokens", "separator"),
    [
        (["a", "<|endoftext|>", "</s>", "<s>"], {"eos_token": "</s>", "bos_token": "<s>"}, 1),
        (["a", "b", "</s>", "<s>"], {"eos_token": "</s>", "bos_token": "<s>"}, 2),
        (["a", "b", "c", "<s>"], {"bos_token": "<s>"}, 3),
        (["a", "b", "c", "d"], {}, 0),
    ],
)
def test_documents_are_kept_apart_by_the_best_token_there_is(vocabulary, tokens, separator):
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="a"))  # noqa: S106
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    assert TextGeneration(tiny_config("gpt2"), tokenizer, Data(), None).separator == separator


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": ["w9 w10"]}, "shorter than one block of 16 tokens"),
        ({"text": ["w9", None]}, r"row 2, column text"),
        ({"text": [1, 2]}, r"row 1, column text"),
        ({"question": ["w9"], "context": ["w9"]}, "one column"),
        ({"body": ["w9"]}, "say which column holds the texts; the columns are body"),
    ],
)
def test_texts_that_give_no_block_are_a_data_error(columns, reason):
    with pytest.raises(DataError, match=reason):
        task().examples(Dataset.from_dict(columns))


def test_a_bad_row_is_named_by_its_place_in_the_whole_data_set():
    rows = Dataset.from_dict({"text": ["w9"] * 300 + [None]})
    with pytest.raises(DataError, match="row 301"):
        task(length=1000).examples(rows)

"""Words give way to words that could stand there; the same ones each time, and the rest of a text stays."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from optimum_slim.data.augment import Augment, augmented, likely_words, proposals, similar_words
from tests.tiny import SPECIAL, VOCABULARY, rows_for, save_tiny, tiny, tiny_tokenizer

CPU = torch.device("cpu")


def vectors():
    """Embeddings in which wN is nearest to the words with the next numbers, on either side."""
    angles = torch.arange(VOCABULARY) * torch.pi / VOCABULARY
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def shouted(places):
    """Proposes for each word itself in capitals, marked, one of two."""
    return [[f"{text[begin:end].upper()}{mark}" for mark in "AB"] for text, begin, end in places]


def rows(*texts):
    return Dataset.from_dict({"text": list(texts)})


def test_words_that_are_near_are_proposed_nearest_first():
    found = similar_words({"w20", "w50"}, tiny_tokenizer("bert"), vectors, 4)
    assert set(found["w20"][:2]) == {"w19", "w21"}
    assert set(found["w50"]) == {"w48", "w49", "w51", "w52"}


def test_a_word_of_several_tokens_is_the_mean_of_theirs():
    tokenizer = tiny_tokenizer("bert")
    found = similar_words({"w20'w30"}, tokenizer, vectors, 3)
    assert tokenizer.tokenize("w20'w30") == ["w20", "<unk>", "w30"]
    assert found == {"w20'w30": []}  # the tokenizer knows no apostrophe
    tokenizer.add_tokens(["'"])
    table = torch.cat([vectors(), (vectors()[20] + vectors()[30])[None] / 2])
    assert set(similar_words({"w20'w30"}, tokenizer, lambda: table, 3)["w20'w30"]) == {"w24", "w25", "w26"}


def test_a_word_that_the_tokenizer_does_not_know_is_left_alone():
    assert similar_words({"xyzzy"}, tiny_tokenizer("bert"), vectors, 4) == {"xyzzy": []}
    propose = proposals(Augment(copies=2, share=1.0), tiny_tokenizer("bert"), vectors, 16, CPU)
    texts = propose([("xyzzy w20", 0, 5), ("xyzzy w20", 6, 9)])
    assert texts[0] == []
    assert len(texts[1]) == 15


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_masked_language_model_is_asked_at_the_place_itself(family):
    model, tokenizer = tiny(family, "ForMaskedLM"), tiny_tokenizer(family)
    text = "w20 good, w30! w40"
    (found,) = likely_words([(text, 4, 8)], model, tokenizer, 3, 16)
    with torch.no_grad():
        logits = model(**tokenizer("w20 <mask>, w30! w40", return_tensors="pt")).logits[0, 2]
    logits[: len(SPECIAL) + 1] = -torch.inf  # special tokens, and the word itself
    assert found == tokenizer.convert_ids_to_tokens(logits.topk(3).indices.tolist())


def test_places_are_answered_in_their_order_whatever_their_length():
    model, tokenizer = tiny("bert", "ForMaskedLM"), tiny_tokenizer("bert")
    texts = [row["text"] for row in rows_for("text-classification", 40)]
    places = [(text, 0, text.index(" ")) for text in texts]
    together = likely_words(places, model, tokenizer, 4, 32)
    assert together == [likely_words([place], model, tokenizer, 4, 32)[0] for place in places]


def test_a_place_beyond_what_the_model_reads_gets_no_words():
    model, tokenizer = tiny("bert", "ForMaskedLM"), tiny_tokenizer("bert")
    text = " ".join(["w20"] * 30)
    near, far = likely_words([(text, 0, 3), (text, 100, 103)], model, tokenizer, 4, 16)
    assert len(near) == 4
    assert far == []


def test_a_model_proposes_for_words_of_one_token_and_embeddings_for_the_others(tmp_path):
    save_tiny(tmp_path / "mlm", "roberta", vocab_size=64)
    settings = Augment(top=3, masked_lm=str(tmp_path / "mlm"))
    propose = proposals(settings, tiny_tokenizer("bert"), vectors, 16, CPU)
    known, unknown = propose([("w20 w100", 0, 3), ("w20 w100", 4, 8)])
    assert len(known) == 3
    assert all(int(word.removeprefix("w")) < 64 for word in known if word.startswith("w"))
    assert set(unknown) <= {f"w{at}" for at in range(97, 104)}


@pytest.mark.parametrize("share", [0.2, 0.4, 1.0])
def test_so_many_copies_are_made_and_such_a_share_of_words_is_replaced(share, tmp_path):
    texts = [f"w{at}, w{at + 1}! 2010 (w{at + 2})" for at in range(20, 120)]
    made = augmented(rows(*texts), ["text"], Augment(copies=3, share=share), 0, shouted, tmp_path)["text"]
    words = sum(text.count("W") for text in made)
    assert words / 900 == pytest.approx(share, abs=0.06)
    assert all("2010" in text and text.count(",") == text.count("!") == text.count("(") == 1 for text in made)
    if share == 1.0:
        assert len(made) == 300
        assert sum(text.count("B") for text in made) / words == pytest.approx(0.5, abs=0.06)


def test_the_same_seed_makes_the_same_copies_of_a_text_whatever_stands_around_it(tmp_path):
    settings = Augment(copies=4, share=0.5)
    texts = [row["text"] for row in rows_for("text-classification", 8)]
    first, again, other = (
        augmented(rows(*texts), ["text"], settings, seed, shouted, tmp_path / name)["text"]
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again != other
    fewer = augmented(rows(*texts[:4]), ["text"], settings, 0, shouted, tmp_path / "first")["text"]
    assert fewer == first[: len(fewer)]


def test_pairs_and_lists_of_words_become_texts(tmp_path):
    pairs = Dataset.from_dict({"premise": ["w20 w21"], "hypothesis": [["w30", "w31"]], "label": [1]})
    made = augmented(pairs, ["premise", "hypothesis"], Augment(copies=1, share=1.0), 0, shouted, tmp_path)
    assert made.column_names == ["premise", "hypothesis"]
    assert made["premise"][0][:3] == "W20"
    assert made["hypothesis"][0][:3] == "W30"
    assert made["hypothesis"][0][5:8] == "W31"


def test_what_was_made_is_found_again_and_nothing_is_asked_twice(tmp_path):
    asked = []

    def counted(places):
        asked.append(len(places))
        return shouted(places)

    first = augmented(rows("w20 w21 w20"), ["text"], Augment(share=1.0), 0, counted, tmp_path)["text"]
    assert augmented(rows("w20 w21 w20"), ["text"], Augment(share=1.0), 0, counted, tmp_path)["text"] == first
    assert asked == [3]
    augmented(rows("w20 w21 w22"), ["text"], Augment(share=1.0), 0, counted, tmp_path)
    assert asked == [3, 3]


def test_copies_in_which_nothing_changed_are_left_out(tmp_path):
    made = augmented(rows("2010 + 7", "w20"), ["text"], Augment(copies=2, share=1.0), 0, shouted, tmp_path)["text"]
    assert {text[:3] for text in made} == {"W20"}
    assert len(made) == 2
    assert not len(augmented(rows("?"), ["text"], Augment(), 0, shouted, tmp_path))

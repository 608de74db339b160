"""Texts are found by the names of files, split as `datasets` would, and refused with what was found instead."""

from __future__ import annotations

import csv
import gzip
import json

import pytest
from datasets import Dataset

from optimum_slim.data.texts import Data, _load_hub, label_column, load_extra, load_texts, split_of, text_columns
from optimum_slim.errors import DataError


def write(path, texts, **columns):
    """A file in the format that its name tells."""
    rows = [{"text": text, **{key: values[i] for key, values in columns.items()}} for i, text in enumerate(texts)]
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if ".csv" in path.suffixes:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        elif ".txt" in path.suffixes:
            file.writelines(f"{text}\n" for text in texts)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def loaded(folder, seed=0, **settings):
    return load_texts(Data(source=str(folder), **settings), seed)


def texts_of(rows):
    return list(rows["text"])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("training-00001.csv", "train"),
        ("rt.dev.jsonl.gz", "validation"),
        ("valid_1.txt", "validation"),
        ("my-Validation.parquet", "validation"),
        ("val.jsonl", "validation"),
        ("test.jsonl", "test"),
        ("eval.jsonl", "test"),
        ("evaluation.csv", "test"),
        ("latest.jsonl", "train"),  # a word within a word is none
        ("invalid.jsonl", "train"),
        ("texts.jsonl", "train"),
    ],
)
def test_a_files_name_tells_its_split(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".txt", ".txt.gz", ".json", ".parquet"])
def test_every_format_is_read(suffix, tmp_path):
    for split, texts in (("train", ["one", "two, three"]), ("test", ["fünf"])):
        if suffix == ".parquet":
            Dataset.from_dict({"text": texts}).to_parquet(tmp_path / f"{split}.parquet")
        else:
            write(tmp_path / f"{split}{suffix}", texts)
    found = loaded(tmp_path)
    assert texts_of(found.train) + texts_of(found.validation[""]) == ["one", "two, three"] * 2  # too few to part with
    assert texts_of(found.test[""]) == ["fünf"]


def test_several_files_of_a_split_are_joined_by_name(tmp_path):
    write(tmp_path / "train-2.jsonl", ["c", "d"])
    write(tmp_path / "train-1.jsonl", ["a", "b"])
    write(tmp_path / "dev.jsonl", ["e"])
    (tmp_path / "README.md").write_text("not a text to train on")
    assert texts_of(loaded(tmp_path).train) == ["a", "b", "c", "d"]


def test_one_file_is_enough(tmp_path):
    found = loaded(write(tmp_path / "test.jsonl", ["a", "b"]))
    assert found.train is None
    assert texts_of(found.test[""]) == ["a", "b"]


def test_without_validation_a_seeded_tenth_of_train_becomes_it(tmp_path):
    texts = [f"text {i}" for i in range(40)]
    write(tmp_path / "train.jsonl", texts)
    found, again, other = loaded(tmp_path), loaded(tmp_path), loaded(tmp_path, seed=1)
    assert (len(found.train), len(found.validation[""])) == (36, 4)
    assert sorted(texts_of(found.train) + texts_of(found.validation[""])) == sorted(texts)
    assert texts_of(found.validation[""]) == texts_of(again.validation[""]) != texts_of(other.validation[""])


def test_sets_are_named_by_patterns_and_train_is_all_of_theirs(tmp_path):
    for name in ("austen", "debian"):
        for split in ("train", "dev", "test"):
            write(tmp_path / f"{name}.{split}.jsonl", [f"{name} {split}"])
    found = loaded(tmp_path, sets={"novels": "austen.*", "packages": "debian.*"})
    assert texts_of(found.train) == ["austen train", "debian train"]
    assert {name: texts_of(rows) for name, rows in found.validation.items()} == {
        "novels": ["austen dev"],
        "packages": ["debian dev"],
    }
    assert found.test.keys() == {"novels", "packages"}


@pytest.mark.parametrize(("which", "texts"), [("test", ["t"]), ("validation", ["v"]), ("validation+test", ["v", "t"])])
def test_the_wanted_splits_are_reported_on(which, texts, tmp_path):
    for split, text in (("train", "a"), ("dev", "v"), ("test", "t")):
        write(tmp_path / f"{split}.jsonl", [text])
    assert texts_of(loaded(tmp_path).evaluation(which)[""]) == texts


@pytest.mark.parametrize("which", ["test", "validation", "validation+test"])
@pytest.mark.parametrize("split", ["dev", "test"])
def test_of_one_split_alone_all_evaluation_is(split, which, tmp_path):
    write(tmp_path / f"{split}.jsonl", ["only"])
    assert texts_of(loaded(tmp_path).evaluation(which)[""]) == ["only"]


def test_the_fingerprint_changes_with_any_byte_and_with_nothing_else(tmp_path):
    write(tmp_path / "test.jsonl", ["a"])
    first = loaded(tmp_path).fingerprint
    (tmp_path / "notes.md").write_text("of no concern")
    assert loaded(tmp_path).fingerprint == first
    write(tmp_path / "test.jsonl", ["b"])
    assert loaded(tmp_path).fingerprint != first


UNREADABLE = {
    "damaged jsonl": ("test.jsonl", b'{"text": "a"\n{"te'),
    "damaged gzip": ("test.jsonl.gz", b"\x1f\x8b\x08 no gzip"),
    "no gzip at all": ("test.jsonl.gz", b'{"text": "a"}\n'),
    "damaged parquet": ("test.parquet", b"PAR1 and no more"),
    "no utf-8": ("test.csv", b"text\n\xff\xfe\xff\n"),
    "an empty jsonl": ("test.jsonl", b""),
    "an empty csv": ("test.csv", b""),
    "an empty txt": ("test.txt", b""),
    "only a header": ("test.csv", b"text,label\n"),
}


@pytest.mark.parametrize(("name", "content"), [pytest.param(*row, id=key) for key, row in UNREADABLE.items()])
def test_a_file_without_texts_is_a_data_error_that_names_it(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"data: .*({name}|{tmp_path.name})"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("files", "settings", "reason"),
    [
        ([], {}, r"holds no file that can be read \(\.jsonl, \.json, \.csv"),
        (["notes.md"], {}, "holds no file that can be read"),
        (["train.jsonl", "train.csv"], {}, "train.csv, train.jsonl are of different formats; keep one"),
        (["train.jsonl"], {"sets": {"a": "other.*"}}, r"data.sets.*'other\.\*'"),
    ],
)
def test_a_folder_that_does_not_fit_is_a_data_error(files, settings, reason, tmp_path):
    for name in files:
        write(tmp_path / name, ["a"])
    with pytest.raises(DataError, match=reason):
        loaded(tmp_path, **settings)


def test_splits_and_sets_whose_columns_differ_are_a_data_error(tmp_path):
    write(tmp_path / "a.train.jsonl", ["a"], label=[1])
    write(tmp_path / "b.train.jsonl", ["b"], label=["one"])
    with pytest.raises(DataError, match="data"):
        loaded(tmp_path, sets={"a": "a.*", "b": "b.*"})


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "org/no-such-data"])
def test_a_source_that_is_nowhere_is_a_data_error(source):
    with pytest.raises(DataError, match=f"data: {source}"):
        load_texts(Data(source=source), 0)


def test_a_source_must_be_given():
    with pytest.raises(DataError, match="no source is given"):
        load_texts(Data(), 0)


@pytest.mark.parametrize(
    ("columns", "wanted", "found"),
    [
        (["label", "text"], None, ("text",)),
        (["sentence", "hypothesis", "premise"], None, ("sentence",)),
        (["hypothesis", "premise", "label"], None, ("premise", "hypothesis")),
        (["tokens", "labels"], None, ("tokens",)),
        (["text", "body"], "body", ("body",)),
        (["text", "a", "b"], ["b", "a"], ("b", "a")),
    ],
)
def test_text_columns_are_the_wanted_ones_or_of_a_usual_name(columns, wanted, found):
    assert text_columns(Dataset.from_dict({name: ["x"] for name in columns}), wanted) == found


def test_errors_of_columns_list_the_columns():
    rows = Dataset.from_dict({"body": ["x"], "stars": [1]})
    with pytest.raises(DataError, match=r"data\.text: say which column holds the texts; the columns are body, stars"):
        text_columns(rows, None)
    with pytest.raises(DataError, match=r"data\.text: there is no column 'txet'; the columns are body, stars"):
        text_columns(rows, ["body", "txet"])
    with pytest.raises(DataError, match=r"data\.label: there is no column 'gold'; the columns are body, stars"):
        label_column(rows, "gold")


@pytest.mark.parametrize(
    ("columns", "wanted", "found"),
    [
        (["text", "label", "labels"], None, "label"),
        (["text", "labels"], None, "labels"),
        (["text", "stars"], "stars", "stars"),
        (["text", "stars"], None, None),
    ],
)
def test_the_label_column_is_the_wanted_one_or_of_a_usual_name(columns, wanted, found):
    assert label_column(Dataset.from_dict({name: ["x"] for name in columns}), wanted) == found


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"sets": {"a": "../secret.*"}}, "sets.a: '../secret.*' must be a pattern of files inside `source`"),
        ({"sets": {"a": "/etc/*"}}, "sets.a: '/etc/*' must be a pattern"),
        ({"sets": {"a": "b/../../c"}}, "sets.a: "),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"calibration": -1}, "calibration must be at least 1, not -1"),
        ({"text": ["a", "b", "c"]}, "text must name a column or a pair of columns, not 3"),
        ({"text": []}, "text must name a column or a pair of columns, not 0"),
    ],
)
def test_settings_that_mean_nothing_are_mistakes(settings, mistake):
    (found,) = Data(**settings).mistakes()
    assert found.startswith(mistake)


def test_sound_settings_have_no_mistakes():
    assert not list(Data(source="x", text=["a", "b"], sets={"a": "austen.*"}, limit=5).mistakes())


def extra(*sources, columns=None, **settings):
    found = load_extra(Data(extra=tuple(map(str, sources)), **settings), columns)
    return [rows.to_dict() for rows in found.rows], found.fingerprint


def test_extra_texts_are_files_and_what_folders_hold_to_train_on(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "a" / "train.jsonl", ["one"])
    write(tmp_path / "a" / "reviews.jsonl", ["two"])
    write(tmp_path / "a" / "test.jsonl", ["hidden"])
    (tmp_path / "b" / "lines.txt").write_text("three\nfour\n")
    alone = write(tmp_path / "dev.jsonl", ["five"])
    found, _ = extra(tmp_path / "a", tmp_path / "b", alone)
    assert found == [{"text": ["two", "one"]}, {"text": ["three", "four"]}, {"text": ["five"]}]


def test_extra_texts_bring_no_labels_and_their_columns_may_have_other_names(tmp_path):
    (tmp_path / "a.csv").write_text("review,sentence,label\nfirst,second,1\n")
    (tmp_path / "b.csv").write_text("sentence,label\nsecond,1\n")
    found, _ = extra(tmp_path / "a.csv", tmp_path / "b.csv", text="review")
    assert found == [{"review": ["first"]}, {"sentence": ["second"]}]


def test_the_columns_of_a_pair_keep_their_order(tmp_path):
    (tmp_path / "a.csv").write_text("hypothesis,premise\nthat,this\n")
    found = load_extra(Data(extra=(str(tmp_path / "a.csv"),)), 2).rows[0]
    assert found.column_names == ["premise", "hypothesis"]


def test_other_extra_texts_have_another_fingerprint(tmp_path):
    a, b = write(tmp_path / "a.jsonl", ["one"]), write(tmp_path / "b.jsonl", ["two"])
    prints = {extra(*sources)[1] for sources in ([a], [b], [a, b], [b, a])}
    assert len(prints) == 4
    before = extra(a)[1]
    write(a, ["three"])
    assert extra(a)[1] != before


def test_extra_texts_that_cannot_be_used_are_told_with_their_source(tmp_path):
    (tmp_path / "held").mkdir()
    write(tmp_path / "held" / "test.jsonl", ["one"])
    (tmp_path / "stars.csv").write_text("row,stars\nfive,5\n")
    (tmp_path / "gaps.jsonl").write_text('{"text": "one"}\n{"text": null}\n')
    (tmp_path / "broken.jsonl").write_text("{")
    one = write(tmp_path / "one.jsonl", ["one"])
    for source, columns, told in (
        (tmp_path / "held", None, "data.extra: .*held holds no texts to train on, only validation or test"),
        (tmp_path / "nowhere", None, "data.extra: .*nowhere is no folder or file here"),
        (tmp_path / "stars.csv", None, "data.extra: .*stars.csv: say which column .* the columns are row, stars"),
        (tmp_path / "gaps.jsonl", None, "data.extra: .*gaps.jsonl: row 2, column text is None, not a text"),
        (tmp_path / "broken.jsonl", None, "data.extra: .*broken.jsonl cannot be read"),
        (one, 2, "data.extra: .*one.jsonl: its texts are in text, those of train in 2 columns"),
    ):
        with pytest.raises(DataError, match=told):
            extra(source, columns=columns)


def test_of_several_splits_of_a_hub_data_set_the_one_named_train_is_taken(tmp_path):
    parts = {"train": "kept", "unsupervised": "other", "test": "judged"}
    for split, text in parts.items():
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": text}))
    files = "".join(f"  - {{split: {split}, path: {split}.jsonl}}\n" for split in parts)
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    found = _load_hub(str(tmp_path))
    assert {split: rows["text"] for split, rows in found.items()} == {"train": ["kept"], "test": ["judged"]}

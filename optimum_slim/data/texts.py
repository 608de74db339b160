"""From a folder, file or Hub data set to its train, validation and test texts."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

from datasets import Dataset, concatenate_datasets, load_dataset
from datasets.utils.logging import disable_progress_bar

from optimum_slim.errors import DataError
from optimum_slim.sources import local_path

Evaluated = Literal["test", "validation", "validation+test"]

TEXT_COLUMNS = (
    ("text",),
    ("sentence",),
    ("premise", "hypothesis"),
    ("question", "context"),
    ("sentence1", "sentence2"),
    ("tokens",),
)
LABEL_COLUMNS = ("label", "labels", "score")

# The words by which `datasets` recognizes a split in a file's name.
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


@dataclass(frozen=True)
class Data:
    """Which texts calibrate, train and judge the model."""

    source: str | None = None  # Hub id, folder, file (jsonl, csv, parquet, txt; .gz), or demo
    text: str | list[str] | None = None  # column, or pair of columns; default: the first of the usual names
    label: str | None = None  # column; default: label, labels or score
    extra: tuple[str, ...] = ()  # sources of more texts to train on, without labels: a teacher answers for them
    sets: dict[str, str] = field(default_factory=dict)  # named evaluation files, {austen: "austen.*"}
    evaluation: Evaluated = "test"  # the splits that the reported figures are measured on
    max_length: int = 128  # tokens of a text; of a block for text generation
    limit: int | None = None  # at most so many texts or blocks of each evaluated set
    calibration: int = 128  # texts or blocks from train that techniques look at

    def mistakes(self) -> Iterator[str]:
        for name in ("max_length", "calibration", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} must be at least 1, not {value}"
        for name, pattern in self.sets.items():
            if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
                yield f"sets.{name}: {pattern!r} must be a pattern of files inside `source`, e.g. 'austen.*'"
        if isinstance(self.text, list) and len(self.text) not in (1, 2):
            yield f"text must name a column or a pair of columns, not {len(self.text)}"


@dataclass(frozen=True)
class Texts:
    """The rows of a data set by split. Evaluated splits are kept by set name; one set without a name is ''."""

    train: Dataset | None
    validation: Mapping[str, Dataset]
    test: Mapping[str, Dataset]
    fingerprint: str  # sha256 of the files, or the Hub's own fingerprint

    def evaluation(self, which: Evaluated) -> dict[str, Dataset]:
        """The rows to report on, by set: the wanted splits, or what there is of them."""
        parts = [part for part in (self.validation, self.test) if part]
        if which == "test":
            parts = parts[-1:]
        elif which == "validation":
            parts = parts[:1]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: _joined([part[name] for part in parts if name in part]) for name in names}


def load_texts(data: Data, seed: int) -> Texts:
    """Loads what `data` names. Without a validation split a seeded tenth of train becomes it; without train there is
    only evaluation.

    Raises:
        DataError: nothing there, unknown format, unreadable file, or no rows.
    """
    disable_progress_bar()
    if data.source is None:
        raise DataError("data: no source is given; name a folder, file or Hub id under `data`, or with --data")
    source = local_path(data.source, "data")
    if source is not None:
        files = find_files(source)
        splits = {
            name: _load_splits([file for file in files if not pattern or fnmatch(file.name, pattern)], pattern)
            for name, pattern in (data.sets or {"": ""}).items()
        }
        fingerprint = _sha256(files)
    else:
        splits = {"": _load_hub(data.source)}
        fingerprint = "-".join(str(rows._fingerprint) for rows in splits[""].values())
    trains = [parts["train"] for parts in splits.values() if "train" in parts]
    train = _joined(trains) if trains else None
    validation = {name: parts["validation"] for name, parts in splits.items() if "validation" in parts}
    test = {name: parts["test"] for name, parts in splits.items() if "test" in parts}
    if train is not None and not validation:
        halves = train.train_test_split(test_size=0.1, seed=seed) if len(train) > 9 else {"train": train, "test": train}
        train, validation = halves["train"], {"": halves["test"]}
    if not any(len(rows) for part in (validation, test) for rows in part.values()):
        raise DataError(f"data: {data.source} holds no texts")
    return Texts(train, validation, test, fingerprint)


@dataclass(frozen=True)
class Extra:
    """Texts without labels, of each source its columns of texts."""

    rows: tuple[Dataset, ...]
    fingerprint: str  # of all sources, as in `Texts`


def load_extra(data: Data, columns: int | None = None) -> Extra:
    """Loads the sources of texts without labels: a file whole, of a folder or Hub id what is not validation or test.
    The texts stand in the columns that `data.text` names, else in those of the usual names.

    Args:
        data: names the sources. columns: how many columns of texts each must have; any number without it.

    Raises:
        DataError: as `load_texts`; nothing to train on, another number of columns, or a row that is no text.
    """
    disable_progress_bar()
    found, fingerprints = [], []
    for name in data.extra:
        source = local_path(name, "data")
        try:
            if source is not None:
                files = find_files(source)
                splits = {"train": _load_files(files)} if source.is_file() else _load_splits(files, "")
                fingerprints.append(_sha256(files))
            else:
                splits = _load_hub(name)
                fingerprints.append("-".join(str(rows._fingerprint) for rows in splits.values()))
            if not len(splits.get("train", ())):
                raise DataError(f"data: {name} holds no texts to train on, only validation or test")
            found.append(_only_texts(splits["train"], data.text, columns))
        except DataError as error:
            told = str(error).removeprefix("data: ").removeprefix("data.text: ")
            raise DataError(f"data.extra: {told if name in told else f'{name}: {told}'}") from error
    return Extra(tuple(found), hashlib.sha256(" ".join(fingerprints).encode()).hexdigest())


def text_columns(rows: Dataset, wanted: str | list[str] | None) -> tuple[str, ...]:
    """The columns of the texts: the wanted ones, or the first of the usual names.

    Raises:
        DataError: not there; lists the columns that are.
    """
    if wanted is not None:
        columns = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        missing = [column for column in columns if column not in rows.column_names]
        if missing:
            raise DataError(f"data.text: there is no column {missing[0]!r}; the columns are {_listed(rows)}")
        return columns
    for columns in TEXT_COLUMNS:
        if all(column in rows.column_names for column in columns):
            return columns
    raise DataError(f"data.text: say which column holds the texts; the columns are {_listed(rows)}")


def one_text_column(rows: Dataset, wanted: str | list[str] | None) -> str:
    """The column of the texts, for tasks that take no pairs.

    Raises:
        DataError: not there, or a pair.
    """
    columns = text_columns(rows, wanted)
    if len(columns) != 1:
        raise DataError(f"data.text: this task takes one column of texts, not {' and '.join(columns)}")
    return columns[0]


def label_column(rows: Dataset, wanted: str | None) -> str | None:
    """The column of the labels: the wanted one, the first of the usual names, or none.

    Raises:
        DataError: the wanted one is not there.
    """
    if wanted is not None and wanted not in rows.column_names:
        raise DataError(f"data.label: there is no column {wanted!r}; the columns are {_listed(rows)}")
    return wanted or next((name for name in LABEL_COLUMNS if name in rows.column_names), None)


def find_files(source: Path) -> list[Path]:
    """The data files of a folder, or the one file, sorted by name.

    Raises:
        DataError: none of a known format.
    """
    found = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    files = [path for path in found if _format(path) in _LOADERS]
    if not files:
        raise DataError(f"data: {source} holds no file that can be read ({', '.join(_LOADERS)}, or one of them .gz)")
    return files


def split_of(name: str) -> str:
    """The split that a file's name tells, by the rule of `datasets`: `rt.dev.jsonl` is validation, `rt.jsonl` train."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, known in _SPLIT_WORDS.items() if set(known) & set(words)), "train")


def _load_splits(files: list[Path], pattern: str) -> dict[str, Dataset]:
    if not files:
        raise DataError(f"data.sets: no file is named like {pattern!r}")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file.name), []).append(file)
    return {split: _load_files(paths) for split, paths in by_split.items()}


def _load_files(files: list[Path]) -> Dataset:
    formats = {_LOADERS[_format(file)] for file in files}
    if len(formats) != 1:
        raise DataError(f"data: {', '.join(file.name for file in files)} are of different formats; keep one")
    # What it would log is told by the error.
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    try:
        return load_dataset(formats.pop(), data_files=[str(file) for file in files], split="train")
    except Exception as error:  # pyarrow, pandas and datasets each have errors of their own for a damaged file
        cause = error.__cause__ or error
        raise DataError(f"data: {', '.join(file.name for file in files)} cannot be read: {cause}") from error


def _load_hub(name: str) -> dict[str, Dataset]:
    try:
        loaded = load_dataset(name)
    except Exception as error:
        raise DataError(f"data: {name} is no folder or file here, and the Hub did not give it out: {error}") from error
    found: dict[str, Dataset] = {}
    for split, rows in loaded.items():
        if split == split_of(split) or split_of(split) not in found:  # imdb has "unsupervised" beside its train
            found[split_of(split)] = rows
    return found


def _only_texts(rows: Dataset, wanted: str | list[str] | None, count: int | None) -> Dataset:
    """The columns of the texts alone, in their order; each value there is a text, or a list of words."""
    named = [wanted] if isinstance(wanted, str) else wanted or []
    columns = text_columns(rows, named if named and set(named) <= set(rows.column_names) else None)
    if count is not None and len(columns) != count:
        raise DataError(f"its texts are in {' and '.join(columns)}, those of train in {count} columns")
    texts, read = rows.select_columns(list(columns)), 0
    for part in texts.iter(batch_size=1000):
        for column in columns:
            wrong = next((at for at, text in enumerate(part[column]) if not isinstance(text, str | list)), None)
            if wrong is not None:
                raise DataError(f"row {read + wrong + 1}, column {column} is {part[column][wrong]!r}, not a text")
        read += len(part[columns[0]])
    return texts


def _joined(parts: list[Dataset]) -> Dataset:
    try:
        return concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        raise DataError(f"data: the files do not have the same columns: {error}") from error


def _format(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _listed(rows: Dataset) -> str:
    return ", ".join(rows.column_names)

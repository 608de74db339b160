"""New texts out of old ones, made before training: words give way to others that could stand there (TinyBERT, 2020)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_slim.errors import SlimError
from optimum_slim.files import wholly
from optimum_slim.model.checkpoint import find_model, load_config, load_model, load_tokenizer
from optimum_slim.progress import progress

WORD = re.compile(r"(?=\d*[^\W\d_])[^\W_]+(?:['\u2019][^\W_]+)*")  # has a letter: numbers say what no other number says
TOGETHER = 32  # texts that the masked language model reads at a time

Place = tuple[str, int, int]  # a text, where a word of it begins, and where that ends
Propose = Callable[[Sequence[Place]], list[list[str]]]


@dataclass(frozen=True)
class Augment:
    """Changed copies of the training texts, made once, for the teacher to answer (after TinyBERT, arXiv:1909.10351,
    section "data augmentation" and algorithm 1). A word that a masked language model knows as one token is drawn from
    those it finds most likely there; any other, and without such a model every word, from those whose embeddings in the
    teacher are nearest (the paper: GloVe's)."""

    copies: int = 4  # changed copies of each training text; the paper makes 20
    share: float = 0.4  # of a copy's words that are replaced
    top: int = 15  # words that a replacement is drawn from
    masked_lm: str | None = None  # folder or Hub id of a masked language model; it runs once for each replaced word

    def mistakes(self) -> Iterator[str]:
        for name in ("copies", "top"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, not {getattr(self, name)}"
        if not 0 < self.share <= 1:
            yield f"share must be above 0 and at most 1, not {self.share}"

    def refusals(self) -> Iterator[str]:
        """Why the masked language model cannot be one, in words for the user."""
        if self.masked_lm is None:
            return
        try:
            folder = find_model(self.masked_lm)
            architecture = (load_config(folder).architectures or ["none"])[0]
            if not architecture.endswith("ForMaskedLM"):
                yield f"{self.masked_lm} is a {architecture}, not a masked language model, e.g. BertForMaskedLM"
            elif load_tokenizer(folder).mask_token is None:
                yield f"the tokenizer of {self.masked_lm} has no mask token"
        except SlimError as error:
            yield str(error).removeprefix("model: ")


def augmented(
    rows: Dataset, columns: Sequence[str], settings: Augment, seed: int, propose: Propose, folder: Path
) -> Dataset:
    """Changed copies of rows, in their order; copies in which nothing changed are left out. They are kept in `folder`,
    where a run that was stopped finds them again.

    Args:
        rows: with texts, or lists of words, in `columns`. propose: the words that could stand at each of some places.
        seed: of every draw; a row's draws do not depend on other rows.

    Returns:
        Rows of `columns` alone, each a text.
    """
    texts = {column: [_as_text(value) for value in rows[column]] for column in columns}
    key = hashlib.sha256(json.dumps([asdict(settings), seed, texts], sort_keys=True).encode()).hexdigest()
    file = folder / f"augmented-{key}.jsonl"
    if not file.exists():
        copies = [_copies(texts[column], settings, (seed, at), propose) for at, column in enumerate(columns)]
        folder.mkdir(parents=True, exist_ok=True)
        changed = (
            row
            for old, new in zip(zip(*texts.values()), zip(*copies), strict=True)
            for row in zip(*new, strict=True)
            if row != old
        )
        wholly(file, lambda to: to.write_text("".join(f"{json.dumps(row)}\n" for row in changed), encoding="utf-8"))
    with file.open(encoding="utf-8") as lines:
        made = [json.loads(line) for line in lines]
    return Dataset.from_dict({column: [row[at] for row in made] for at, column in enumerate(columns)})


def proposals(
    settings: Augment,
    tokenizer: PreTrainedTokenizerBase,
    vectors: Callable[[], Tensor],
    max_length: int,
    device: torch.device,
) -> Propose:
    """Who proposes words, as the settings say. Models and vectors are loaded when there is something to propose.

    Args:
        vectors: gives the embeddings [tokens, hidden] of the tokenizer's tokens.
        max_length: tokens of a text that the masked language model reads.
    """

    def propose(places: Sequence[Place]) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in places]
        left = list(range(len(places)))
        if settings.masked_lm is not None:
            folder = find_model(settings.masked_lm)
            its_tokenizer = load_tokenizer(folder)
            whole = _pieces(its_tokenizer, [_word(place) for place in places])
            single = [at for at in left if len(whole[at]) == 1]
            model = load_model(folder)
            nn.Module.to(model, device)
            length = min(max_length, its_tokenizer.model_max_length)
            asked = likely_words([places[at] for at in single], model, its_tokenizer, settings.top, length)
            for at, words in zip(single, asked, strict=True):
                found[at] = words
            left = [at for at in left if len(whole[at]) != 1]
        near = similar_words({_word(places[at]) for at in left}, tokenizer, vectors, settings.top)
        for at in left:
            found[at] = near[_word(places[at])]
        return found

    return propose


def similar_words(
    words: set[str], tokenizer: PreTrainedTokenizerBase, vectors: Callable[[], Tensor], top: int
) -> dict[str, list[str]]:
    """For each word the `top` words of one token whose embeddings are nearest to its own by their cosine, nearest
    first; a word of several tokens counts as the mean of theirs. None for a word that the tokenizer does not know."""
    found: dict[str, list[str]] = {word: [] for word in words}
    pieces = dict(zip(sorted(words), _pieces(tokenizer, sorted(words)), strict=True))
    known = [word for word in pieces if pieces[word]]
    if not known:
        return found
    table = vectors().float()
    ids, names = _whole_words(tokenizer, len(table))
    wholes = normalize(table[ids], dim=-1)
    for start in range(0, len(known), 1024):
        part = known[start : start + 1024]
        asked = normalize(torch.stack([table[pieces[word]].mean(0) for word in part]), dim=-1)
        nearest = (asked @ wholes.T).topk(min(top + 1, len(ids)), dim=-1).indices.tolist()
        for word, row in zip(part, nearest, strict=True):
            found[word] = _others(word, [names[at] for at in row], top)
    return found


@torch.no_grad()
def likely_words(
    places: Sequence[Place], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, top: int, max_length: int
) -> list[list[str]]:
    """For each place the `top` words of one token that a masked language model finds most likely there, most likely
    first, the other words standing as they are. None where the place lies beyond `max_length` tokens."""
    found: list[list[str]] = [[] for _ in places]
    ids, names = _whole_words(tokenizer, model.config.vocab_size)
    order = sorted(range(len(places)), key=lambda at: len(places[at][0]))
    for start in progress(range(0, len(order), TOGETHER), "proposing words"):
        part = order[start : start + TOGETHER]
        cut = [places[at] for at in part]
        texts = [text[:begin] + str(tokenizer.mask_token) + text[end:] for text, begin, end in cut]
        encoded = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        batch = encoded.to(model.device)
        masked = batch["input_ids"] == tokenizer.mask_token_id
        there = masked.any(1)
        if not there.any():
            continue
        logits = model(**batch).logits[torch.arange(len(part), device=model.device), masked.long().argmax(1)]
        likely = logits[:, ids].topk(min(top + 1, len(ids)), dim=-1).indices.tolist()
        for at, row, seen in zip(part, likely, there.tolist(), strict=True):
            found[at] = _others(_word(places[at]), [names[one] for one in row], top) if seen else []
    return found


def _copies(texts: Sequence[str], settings: Augment, seed: tuple[int, ...], propose: Propose) -> list[list[str]]:
    """The changed copies of each text, some of them perhaps equal to it."""
    words = [[match.span() for match in WORD.finditer(text)] for text in texts]
    draws = [
        np.random.default_rng((*seed, at)).random((settings.copies, len(spans), 2)) for at, spans in enumerate(words)
    ]
    places: dict[Place, int] = {}
    for text, spans, drawn in zip(texts, words, draws, strict=True):
        for at in np.flatnonzero((drawn[:, :, 0] < settings.share).any(0)):
            places.setdefault((text, *spans[at]), len(places))
    proposed = propose(list(places))
    return [
        [_changed(text, spans, row, settings.share, places, proposed) for row in drawn]
        for text, spans, drawn in zip(texts, words, draws, strict=True)
    ]


def _changed(
    text: str,
    spans: Sequence[tuple[int, int]],
    draws: np.ndarray,
    share: float,
    places: dict[Place, int],
    proposed: Sequence[Sequence[str]],
) -> str:
    """A copy; of each word's two draws, in [0, 1), the first says whether it is replaced, the second by which word."""
    parts, done = [], 0
    for (begin, end), (chance, which) in zip(spans, draws, strict=True):
        words = proposed[places[text, begin, end]] if chance < share else ()
        if words:
            parts += [text[done:begin], words[int(which * len(words))]]
            done = end
    return "".join([*parts, text[done:]])


def _as_text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " ".join(value)


def _word(place: Place) -> str:
    text, begin, end = place
    return text[begin:end]


def _others(word: str, words: Sequence[str], top: int) -> list[str]:
    return [one for one in words if one.casefold() != word.casefold()][:top]


def _pieces(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """The tokens of each word as it stands inside a text; none of a word that the tokenizer knows not all of."""
    if not words:
        return []
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    return [[] if tokenizer.unk_token_id in ids else ids for ids in encoded]


def _whole_words(tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[list[int], list[str]]:
    """The tokens below `count` that are a word by themselves, and these words."""
    every = range(min(len(tokenizer), count))
    names = [name.strip() for name in tokenizer.batch_decode([[token] for token in every])]
    words = [(token, name) for token, name in zip(every, names, strict=True) if WORD.fullmatch(name)]
    pieces = _pieces(tokenizer, [name for _, name in words])
    whole = [pair for pair, ids in zip(words, pieces, strict=True) if ids == [pair[0]]]
    return [token for token, _ in whole], [name for _, name in whole]

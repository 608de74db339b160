"""Rebuild optimum_slim/demo: a small real model and data set that are free to publish.

python tests/benchmarks/make_demo.py --novels FOLDER --base FOLDER

--novels: a folder with austen.{train,validation,test}.jsonl.gz, rows {"id": "Emma/train", "text": ...}, of Jane
Austen's six novels (public domain). --base: all-MiniLM-L6-v2 (Apache-2.0) as saved by transformers.

The task: which of the six novels is a passage from? The model is fine-tuned whole; only its vocabulary is cut, to the
tokens that the passages use.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from optimum_slim.data.texts import Data, load_texts
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.text_classification import TextClassification
from optimum_slim.techniques.train import Train
from optimum_slim.training.batches import TrainingData

DEMO = Path(__file__).parents[2] / "optimum_slim" / "demo"
WORDS = 60  # of a passage
TOKENS = 128  # of a passage, at most
VOCABULARY = 6000
CARD = """---
license: apache-2.0
base_model: sentence-transformers/all-MiniLM-L6-v2
---

all-MiniLM-L6-v2, fine-tuned to tell which of Jane Austen's novels a passage is from.
"""
SPLITS = ("train", "validation", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--novels", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    for part in ("model", "data"):
        shutil.rmtree(DEMO / part, ignore_errors=True)
    labels = write_data(arguments.novels)
    tokenizer, kept = cut_tokenizer(AutoTokenizer.from_pretrained(arguments.base))
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.base, label2id={name: i for i, name in enumerate(labels)}, id2label=dict(enumerate(labels))
    )
    cut_embedding(model, kept)
    quality = fine_tune(model, tokenizer, arguments.epochs)
    model.half().save_pretrained(DEMO / "model", safe_serialization=True)
    tokenizer.save_pretrained(DEMO / "model")
    for file in (DEMO / "model").iterdir():
        file.chmod(0o644)
    (DEMO / "model" / "README.md").write_text(CARD, encoding="utf-8")
    write_readme(quality, len(kept))


def write_data(novels: Path) -> list[str]:
    """Passages of about 60 words, a line each; returns the titles in order."""
    (DEMO / "data").mkdir(parents=True)
    titles: set[str] = set()
    for split in SPLITS:
        with gzip.open(novels / f"austen.{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        lines = []
        for row in rows:
            title = row["id"].partition("/")[0]
            titles.add(title)
            lines += [json.dumps({"text": text, "label": title}, ensure_ascii=False) for text in passages(row["text"])]
        # mtime 0: the same passages give the same bytes
        content = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
        (DEMO / "data" / f"{split}.jsonl.gz").write_bytes(content)
    return sorted(titles)


def passages(text: str) -> Iterator[str]:
    """Runs of whole sentences of at least `WORDS` words; what is left at the end is dropped."""
    words: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
        words += sentence.split()
        if len(words) >= WORDS:
            yield " ".join(words)
            words = []


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer with special tokens, single characters and the most frequent tokens of the train passages, and the
    old id of each new one."""
    counts: Counter[int] = Counter()
    with gzip.open(DEMO / "data" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            counts.update(tokenizer(json.loads(line)["text"], add_special_tokens=False, verbose=False)["input_ids"])
    old = tokenizer.get_vocab()
    plain = re.compile(r"(##)?[ -~]")
    wanted = [old[token] for token in tokenizer.all_special_tokens]
    wanted += [i for token, i in old.items() if plain.fullmatch(token)] + [i for i, _ in counts.most_common()]
    kept = sorted(list(dict.fromkeys(wanted))[:VOCABULARY])
    names = {i: token for token, i in old.items()}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] = {names[i]: at for at, i in enumerate(kept)}
    for added in state["added_tokens"]:
        added["id"] = kept.index(added["id"])
    for name, entry in (state["post_processor"] or {}).get("special_tokens", {}).items():
        entry["ids"] = [kept.index(old[name])]
    state["truncation"] = state["padding"] = None
    cut = BertTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), model_max_length=512)
    return cut, kept


def cut_embedding(model: PreTrainedModel, kept: list[int]) -> None:
    """Keeps the rows of the kept tokens, in place."""
    embedding = model.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(embedding.weight.data[kept].clone())
    embedding.num_embeddings = model.config.vocab_size = len(kept)
    embedding.padding_idx = model.config.pad_token_id = 0


def fine_tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, epochs: float) -> dict[str, float]:
    """Trains on the labels, in place; returns accuracies of the half-precision weights that are kept."""
    task = TextClassification(model.config, tokenizer, Data(source=str(DEMO / "data"), max_length=TOKENS), DEMO)
    texts = load_texts(task.data, seed=0)
    train = Train(epochs=epochs, learning_rate=1e-4, labels=1.0, dropout=True, precision="bf16")
    data = TrainingData(task.examples(texts.train), task.collate)
    with tempfile.TemporaryDirectory() as folder:
        train.apply(model, training_data=data, tokenizer=tokenizer, seed=0, workdir=Path(folder))
    model.half().float()
    evaluations = {
        name: Evaluation.of(task, part) for name, part in (("validation", texts.validation), ("test", texts.test))
    }
    return {name: one.quality(model, 32)["accuracy"] for name, one in evaluations.items()}


def write_readme(quality: dict[str, float], tokens: int) -> None:
    counts = {}
    for split in SPLITS:
        with gzip.open(DEMO / "data" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            counts[split] = sum(1 for _ in file)
    (DEMO / "README.md").write_text(
        f"""# The demo

`model: demo` and `data: demo`: a small real model and data set, so that a first run needs no network.

- **Data**: passages of about {WORDS} words from Jane Austen's six novels (public domain), labelled by novel:
  {counts["train"]} to train, {counts["validation"]} to validate and {counts["test"]} to test, from different parts
  of each novel.
- **Model**: all-MiniLM-L6-v2 (Apache-2.0, sentence-transformers), fine-tuned to tell the novels apart. All six
  layers and widths are uncut; the vocabulary is cut to {tokens} tokens; weights are fp16. Accuracy
  {quality["validation"]:.4f} on validation, {quality["test"]:.4f} on test.

`tests/benchmarks/make_demo.py` rebuilds both.
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

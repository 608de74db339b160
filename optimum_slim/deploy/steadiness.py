"""Does an answer depend on anything but its text? On what else is in the batch, on padding, on threads: measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from optimum_slim.data.texts import Data
from optimum_slim.data.through import one_by_one
from optimum_slim.deploy.saturation import products_in
from optimum_slim.deploy.verify import first_output, load_ort
from optimum_slim.model.checkpoint import load_config, load_tokenizer
from optimum_slim.tasks.task import Example, Task

LENGTHS = (3, 9, 17, 32)  # tokens of the texts


def checked(folder: Path, kind: type[Task]) -> dict[str, Any]:
    """What a file promises to those who serve it, for `Report.verify`.

    Returns:
        `batch`, `padding`, `threads`: as `steadiness`; `products`: how many products of 8-bit integers there are, and
        `saturating`: of how many a sum can overflow on x86 without VNNI (see saturation.py).
    """
    products = products_in(folder / "model.onnx")
    saturating = sum(product.pairs > 0 for product in products)
    return {**steadiness(folder, kind), "products": len(products), "saturating": saturating}


def steadiness(folder: Path, kind: type[Task]) -> dict[str, float]:
    """Runs a few texts of random tokens, the same every time, in different company.

    Args:
        folder: with a model.onnx, its config.json and its tokenizer, by whose collator texts are padded.

    Returns:
        The largest difference to the answer that a text gets alone and on one thread, as a share of the largest output:
        in a `batch` with the others; padded to the longest, a decoder's text also on its left (`padding`); on two
        `threads`. 0: equal to the last bit.

    Raises:
        ModelError: a file does not load.
    """
    task = kind(load_config(folder), load_tokenizer(folder), Data(), folder)
    one, two = (load_ort(folder, kind, threads) for threads in (1, 2))
    texts = random_texts(task, "token_type_ids" in one.input_names)
    batches = [task.collate([text]) for text in texts]
    together = task.collate(texts)
    alone = [answers(one, batch)[0] for batch in batches]
    found = {"batch": answers(one, together), "threads": [answers(two, batch)[0] for batch in batches]}
    rows = one_by_one([together])
    found["padding"] = [answers(one, row)[0] for row in rows]
    largest = max(float(np.abs(answer).max()) for answer in alone)
    differences = {name: _largest_difference(alone, other) / largest for name, other in found.items()}
    if task.name == "text-generation":
        moved = [answers(one, _padded_as_for_generation(row, one))[0] for row in rows]
        differences["padding"] = max(differences["padding"], _largest_difference(alone, moved) / largest)
    return {name: differences[name] for name in ("batch", "padding", "threads")}


def random_texts(task: Task, with_types: bool) -> list[Example]:
    """Texts of `LENGTHS` tokens that mean nothing, as examples without labels."""
    draw, texts = np.random.default_rng(0), list[Example]()
    for length in LENGTHS:
        ids = draw.integers(min(5, task.config.vocab_size - 1), task.config.vocab_size, length).tolist()
        texts.append({"input_ids": ids, "attention_mask": [1] * length})
        if with_types:
            texts[-1]["token_type_ids"] = [0] * length
    return texts


def answers(model: Any, batch: Mapping[str, Tensor]) -> list[np.ndarray]:
    """For each text of a batch its outputs, float32; of outputs for each token those of its own tokens."""
    found = first_output(model, batch)
    real = batch["attention_mask"].bool()
    return [(row[mask] if found.ndim == 3 else row).numpy() for row, mask in zip(found, real, strict=True)]


def _padded_as_for_generation(row: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """One padded text [1, tokens] with its padding on the left, and positions that start behind it."""
    mask = row["attention_mask"]
    turned = {name: value.roll(int((mask == 0).sum()), 1) for name, value in row.items() if not mask[0, -1]} or row
    if "position_ids" not in model.input_names:
        return turned
    return {**turned, "position_ids": (turned["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def _largest_difference(answers: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(answers, others, strict=True))

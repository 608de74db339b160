"""Do rounded activations choose other tokens? A decoder of blocks is compared with itself on activations in floats."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optimum_slim.data.statistics import Batches
from optimum_slim.deploy.blocks import set_level
from optimum_slim.deploy.stored import read_graph, save_onnx
from optimum_slim.deploy.verify import first_output, load_ort
from optimum_slim.tasks import TextGeneration
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.task import in_turn, without_labels

LEAST = 0.9  # of tokens must be the same: nearly equal ones aside, rounding leaves 95 to 99 % as they are
TOKENS = 2048  # that are compared, at least where there are so many
UNKNOWN = (4, 128)  # texts and tokens that are drawn where there are no texts


def gated(folder: Path, batches: Batches) -> tuple[Path, dict[str, Any]]:
    """The folder of a decoder's file of blocks, whose activations are rounded (`accuracy_level` 4), or where that
    changes too many tokens of one whose activations stay floats (1), which is many times slower for single tokens.

    Args:
        folder: with the model.onnx and its config.json. batches: tokenized texts with an `attention_mask`.

    Returns:
        Besides the folder what was decided: `accuracy_level`, and the `token_agreement` that it was decided by.
    """
    exact = folder.with_name(f"{folder.name}-exact")
    shutil.rmtree(exact, ignore_errors=True)
    shutil.copytree(folder, exact, ignore=shutil.ignore_patterns("*.onnx*"))
    graph = read_graph(folder / "model.onnx")
    set_level(graph, 1)
    save_onnx(graph, exact / "model.onnx")
    agreement = round(token_agreement(load_ort(folder, TextGeneration), load_ort(exact, TextGeneration), batches), 4)
    if agreement < LEAST:
        return exact, {"accuracy_level": 1, "token_agreement": agreement}
    shutil.rmtree(exact)
    return folder, {"accuracy_level": 4, "token_agreement": agreement}


def token_agreement(model: Any, other: Any, batches: Batches) -> float:
    """The share of real tokens behind which two decoders, torch or ORT, expect the same token most."""
    same = count = 0
    for batch in batches:
        real = batch["attention_mask"].bool()
        first, second = (first_output(one, batch)[real].argmax(-1) for one in (model, other))
        same, count = same + int((first == second).sum()), count + len(first)
    return same / count


def texts_to_compare(validation: Evaluation | None, vocabulary: int) -> list[dict[str, Tensor]]:
    """Texts of validation, one a batch, from all over each set until there are `TOKENS`; where there are none, tokens
    drawn at random, the same every time."""
    if validation is None:
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(min(5, vocabulary - 1), vocabulary, UNKNOWN, generator=draw)
        return [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    chosen, tokens = list[dict[str, Tensor]](), 0
    for example in in_turn(validation.sets.values()):
        if tokens >= TOKENS:
            break
        chosen.append(without_labels(validation.task.collate([example])))
        tokens += int(chosen[-1]["attention_mask"].sum())
    return chosen

"""What a decoder writes: how models go on with held texts, for a reader to compare."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from transformers import GenerationConfig

from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.task import in_turn

SAMPLES = 3
PROMPT, TOKENS = 16, 32  # tokens that are given, and that are written


def samples(evaluation: Evaluation, models: Mapping[str, Any]) -> list[dict[str, str]]:
    """The likeliest next tokens of each model, one after another, after the openings of some blocks of each set.

    Args:
        evaluation: of a decoder's task. models: torch models or ORTModels by name.

    Returns:
        Rows {prompt, and for each model what it writes}.
    """
    tokenizer = evaluation.task.tokenizer
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = []
    for example in islice(in_turn(evaluation.sets.values()), SAMPLES):
        given = torch.tensor([example["input_ids"][:PROMPT]])
        row = {"prompt": tokenizer.decode(given[0], skip_special_tokens=True)}
        for name, model in models.items():
            written = model.generate(given, attention_mask=torch.ones_like(given), generation_config=settings)
            row[name] = tokenizer.decode(written[0, given.shape[1] :], skip_special_tokens=True)
        rows.append(row)
    return rows

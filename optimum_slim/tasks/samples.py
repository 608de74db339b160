"""What a decoder writes: how models go on with held texts, for a reader to compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig

from optimum_slim.tasks.evaluate import Evaluation

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
    for example in _spread([list(examples) for examples in evaluation.sets.values()]):
        given = torch.tensor([example["input_ids"][:PROMPT]])
        row = {"prompt": tokenizer.decode(given[0], skip_special_tokens=True)}
        for name, model in models.items():
            written = model.generate(given, attention_mask=torch.ones_like(given), generation_config=settings)
            row[name] = tokenizer.decode(written[0, given.shape[1] :], skip_special_tokens=True)
        rows.append(row)
    return rows


def _spread(sets: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The first texts of each set, the second ones, and so on, until there are enough."""
    longest = max(map(len, sets))
    return [one[at] for at in range(longest) for one in sets if at < len(one)][:SAMPLES]

"""New texts out of old ones: a live teacher answers for any text, so a student need not see only the few there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

UNTOUCHED = 0.3  # share of texts that stay as they are


def swapped(
    batch: Mapping[str, Tensor], share: float, special: Collection[int], draw: torch.Generator
) -> dict[str, Tensor]:
    """Swaps a share of the tokens for others drawn from the same batch, so that frequent tokens come often; after the
    word swaps of TinyBERT (arXiv:1909.10351, section 3.3), without a language model to choose them.

    Args:
        batch: `input_ids` int64 [batch, tokens], and what else belongs to it.
        share: of the tokens of a touched text.
        special: ids that stay where they are and are not drawn: padding, separators.
        draw: of the CPU, so that every device draws the same.

    Returns:
        The batch with new `input_ids`.
    """
    ids = batch["input_ids"]
    real = ~torch.isin(ids, torch.tensor(sorted(special), device=ids.device))
    touched = torch.rand(len(ids), 1, generator=draw) >= UNTOUCHED
    chosen = real & (touched & (torch.rand(ids.shape, generator=draw) < share)).to(ids.device)
    words = ids[real]
    if len(words) == 0:
        return dict(batch)
    drawn = words[torch.randint(len(words), ids.shape, generator=draw).to(ids.device)]
    return {**batch, "input_ids": torch.where(chosen, drawn, ids)}

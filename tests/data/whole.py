"""Second moments as a whole forward pass tells them: what is streamed is compared with these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@torch.no_grad()
def input_grams(
    model: PreTrainedModel, names: Sequence[str], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Second moments of the inputs of some linears, padding left out. A bias counts as one more input, always 1.

    Args:
        model: a running model.
        names: linears, as in `named_modules()`.
        batches: tokenized texts with an `attention_mask` [batch, tokens].

    Returns:
        For each name X^T X / rows, float32 [K, K], where X [rows, K] are the inputs at all real tokens.
    """
    modules = dict(model.named_modules())
    grams: dict[str, Tensor] = {}
    rows = 0
    mask = torch.ones(0, dtype=torch.bool)

    def watch(name: str, biased: bool) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            real = inputs[0].flatten(0, -2)[mask].float()
            if biased:
                real = torch.cat([real, real.new_ones(len(real), 1)], dim=1)
            grams[name] = grams.get(name, 0) + real.T @ real

        return add

    hooks = [modules[name].register_forward_pre_hook(watch(name, modules[name].bias is not None)) for name in names]
    try:
        for batch in batches:
            mask = batch["attention_mask"].flatten().bool()
            rows += int(mask.sum())
            model.base_model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: gram / rows for name, gram in grams.items()}

"""What passes through a model's linears on calibration texts: streamed, so that no activation is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimum_slim.model.anatomy import Block, anatomy_of, blocks_of
from optimum_slim.model.shape import in_features
from optimum_slim.progress import progress

GRAM_BYTES = 2**30  # of second moments that are held at a time

Batches = Sequence[Mapping[str, Tensor]]


def grams_in_turn(
    model: PreTrainedModel, role: str, indices: Collection[int], batches: Batches
) -> Iterator[tuple[Block, Tensor]]:
    """Second moments of what one linear of each chosen block reads, as many blocks at a time as fit in `GRAM_BYTES`.
    Who cuts a block before asking for the next has later blocks judged by what the cut ones send.

    Args:
        model: a running model. role: the linear, as in Anatomy ("ffn_out", "output"). indices: the blocks.
        batches: tokenized texts with an `attention_mask`.

    Yields:
        The block, and the `input_grams` of its linear.
    """
    chosen = [block for block in blocks_of(model) if block.index in indices]
    while chosen:
        size = 4 * in_features(getattr(chosen[0], role)) ** 2
        count = max(1, GRAM_BYTES // size)
        part, chosen = chosen[:count], chosen[count:]
        grams = input_grams(model, [block.name_of(role) for block in part], batches)
        for block in part:
            yield block, grams.pop(block.name_of(role))


@torch.no_grad()
def input_grams(model: PreTrainedModel, names: Sequence[str], batches: Batches) -> dict[str, Tensor]:
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

    def add(name: str, real: Tensor) -> None:
        if modules[name].bias is not None:
            real = torch.cat([real, real.new_ones(len(real), 1)], dim=1)
        grams[name] = grams.get(name, 0) + real.T @ real

    rows = _watch_inputs(model, names, batches, add)
    return {name: gram / rows for name, gram in grams.items()}


@torch.no_grad()
def input_absmax(model: PreTrainedModel, names: Sequence[str], batches: Batches) -> dict[str, Tensor]:
    """The largest magnitude of each input of some linears, padding left out.

    Args:
        model: a running model. names, batches: as in `input_grams`.

    Returns:
        For each name max |X| over all real tokens, float32 [K].
    """
    found: dict[str, Tensor] = {}

    def add(name: str, real: Tensor) -> None:
        largest = real.abs().amax(0)
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    _watch_inputs(model, names, batches, add)
    return found


def _watch_inputs(
    model: PreTrainedModel, names: Sequence[str], batches: Batches, add: Callable[[str, Tensor], None]
) -> int:
    """Runs a model on texts and calls `add` for each linear with what it reads at the real tokens of a batch, float32
    [rows, K]; returns how many rows there were in all."""
    modules = dict(model.named_modules())
    rows = 0
    mask = torch.ones(0, dtype=torch.bool)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: add(name, inputs[0].flatten(0, -2)[mask].float())

    hooks = [modules[name].register_forward_pre_hook(watch(name)) for name in names]
    try:
        for inputs in _on_device(model, batches):
            mask = inputs["attention_mask"].flatten().bool()
            rows += int(mask.sum())
            model.base_model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


@torch.no_grad()
def block_influences(model: PreTrainedModel, batches: Batches) -> Tensor:
    """How much each block turns its input: 1 - cos(input, output), averaged over real tokens (ShortGPT,
    arXiv:2403.03853, eq. 1).

    Returns:
        float32 [blocks].
    """
    blocks = list(blocks_of(model))
    turns, rows = torch.zeros(len(blocks)), 0
    mask = torch.ones(0, dtype=torch.bool)

    def watch(index: int) -> Callable[..., None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosines = nn.functional.cosine_similarity(inputs[0][mask].float(), after[mask].float(), dim=-1)
            turns[index] += (1 - cosines).sum().cpu()

        return add

    hooks = [block.module.register_forward_hook(watch(block.index)) for block in blocks]
    try:
        for inputs in _on_device(model, batches):
            mask = inputs["attention_mask"].bool()
            rows += int(mask.sum())
            model.base_model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return turns / rows


def _on_device(model: PreTrainedModel, batches: Batches) -> Iterator[dict[str, Any]]:
    extra = {"use_cache": False} if anatomy_of(model).causal else {}
    for batch in progress(batches, "calibrating"):
        yield {key: value.to(model.device) for key, value in batch.items()} | extra

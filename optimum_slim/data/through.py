"""Texts on their way through a model's blocks: what the next block reads of them is kept, so that one block at a time
is enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimum_slim.model.anatomy import Block, anatomy_of, blocks_of
from optimum_slim.model.streamed import HEAD, OUTSIDE, device_of, held
from optimum_slim.progress import progress

STATE_BYTES = 2**29  # of states of a streamed model that are held at a time where there is a choice

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Statistic:
    """What is asked about the rows [rows, K] that a linear reads."""

    of: Callable[[Tensor], Tensor]  # some rows
    join: Callable[[Tensor, Tensor], Tensor] = torch.add  # that of some rows and that of others
    mean: bool = True  # it is divided by the number of rows in the end


class Text:
    """A batch of texts on its way."""

    states: Tensor  # what the next block reads, [batch, tokens, hidden]
    real: Tensor  # bool [batch, tokens]
    calls: Calls  # what each block is given besides: masks, positions

    def __init__(self, model: PreTrainedModel, batch: Batch):
        """Takes a batch to the first block.

        Args:
            model: with what stands outside its blocks held. batch: with an `attention_mask` [batch, tokens].
        """
        inputs = {key: value.to(device_of(model)) for key, value in batch.items()}
        self.inputs: dict[str, Any] = inputs | ({"use_cache": False} if anatomy_of(model).causal else {})
        self.real = inputs["attention_mask"].bool()
        self.calls = []
        self.in_tuple = True  # whether blocks give their states as the first of several results
        last = len(list(blocks_of(model))) - 1

        def record(index: int, *args: Any, **kwargs: Any) -> tuple[Tensor]:
            if index == 0:
                self.states = args[0]
            self.calls.append((args[1:], kwargs))
            if index == last:
                raise _LastBlockReached
            return (self.states,)

        with _in_place_of_blocks(model, record), suppress(_LastBlockReached):
            model.base_model(**self.inputs)

    def through(self, block: Block) -> Tensor:
        """What the block, which is held, makes of the states."""
        args, kwargs = self.calls[block.index]
        output = block.module(self.states, *args, **kwargs)
        self.in_tuple = isinstance(output, tuple)
        return output[0] if self.in_tuple else output

    def outputs(self, model: PreTrainedModel) -> Any:
        """What the model makes of the states behind its last block: its outputs as of any call.

        Args:
            model: with what stands outside its blocks held, and the head.
        """

        def give(_: int, *args: Any, **__: Any) -> Any:
            return (self.states,) if self.in_tuple else self.states

        with _in_place_of_blocks(model, give):
            return model(**self.inputs)


class _LastBlockReached(Exception):  # noqa: N818  it is no error
    """What comes after the last block need not run."""


def on_their_way(model: PreTrainedModel, batches: Iterable[Batch]) -> list[Text]:
    """Texts at the first block."""
    with torch.no_grad(), held(model, OUTSIDE):
        return [Text(model, batch) for batch in batches]


def statistics_of(
    block: Block, linears: Mapping[str, nn.Module], texts: Sequence[Text], statistic: Statistic
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Runs a block, which is held, over all texts, which stay where they are.

    Args:
        linears: of the block, by any name.

    Returns:
        For each linear the statistic of all real tokens that it reads, float32; and what the block made of each text.
        Queries, keys and values read one tensor: its statistic is computed once, and shared.
    """
    joined: dict[str, Tensor] = {}
    first: dict[str, str] = {}  # of the linears that read the same tensor, the one that reads it first
    latest: tuple[Tensor, str] | None = None
    real = torch.ones(0, dtype=torch.bool)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal latest
            if latest is None or latest[0] is not inputs[0]:
                latest = inputs[0], name
                found = statistic.of(inputs[0].flatten(0, -2)[real].float())
                joined[name] = statistic.join(joined[name], found) if name in joined else found
            first[name] = latest[1]

        return add

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    outputs = []
    try:
        for text in texts:
            real = text.real.flatten()
            outputs.append(text.through(block))
            latest = None
    finally:
        for hook in hooks:
            hook.remove()
    rows = sum(int(text.real.sum()) for text in texts) if statistic.mean else 1
    found = {name: total / rows for name, total in joined.items()}
    return {name: found[first[name]] for name in linears}, outputs


def send_on(block: Block, texts: Sequence[Text], old: Sequence[Tensor]) -> float | None:
    """Sends texts through a block, which is held: what it makes of them is what the next one reads.

    Args:
        old: what it made of them before it was changed; empty where it was not.

    Returns:
        The `relative_error` of that change.
    """
    error, size = 0.0, 0.0
    for at, text in enumerate(texts):
        new = text.through(block)
        if old:
            error += float((new - old[at])[text.real].double().square().sum())
            size += float((old[at] - text.states)[text.real].double().square().sum())
        text.states = new
    return relative_error(error, size) if old else None


def relative_error(error: float, size: float) -> float:
    """What a change made of a block, as a share of what the block does: |B'(x) - B(x)| / |B(x) - x|.

    Args:
        error, size: the squares of both, summed over the same real tokens.
    """
    return math.sqrt(error / size) if size else 0.0


@torch.no_grad()
def outputs_of(model: PreTrainedModel, batches: Sequence[Batch]) -> Iterator[Any]:
    """The outputs of a streamed model for each batch, in order. All blocks are read once for as many batches as
    `STATE_BYTES` allow.

    Args:
        batches: as for `Text`.
    """
    for group in in_groups(model, batches):
        texts = on_their_way(model, group)
        for block in progress(list(blocks_of(model)), "block by block"):
            with held(model, block.name):
                for text in texts:
                    text.states = text.through(block)
        with held(model, OUTSIDE, HEAD):
            for text in texts:
                yield text.outputs(model)


def one_by_one(batches: Iterable[Batch]) -> list[Batch]:
    """Batches of one text each."""
    rows = [(batch, at) for batch in batches for at in range(len(batch["attention_mask"]))]
    return [{key: value[at : at + 1] for key, value in batch.items()} for batch, at in rows]


def in_groups(model: PreTrainedModel, batches: Sequence[Batch], copies: int = 1) -> Iterator[list[Batch]]:
    """The batches in order, as many at a time as `STATE_BYTES` allow to be on their way together.

    Args:
        copies: of its states that each batch has.
    """
    left = list(batches)
    while left:
        sizes = [4 * copies * batch["attention_mask"].numel() * model.config.hidden_size for batch in left]
        count = max(1, sum(total <= STATE_BYTES for total in accumulate(sizes)))
        yield left[:count]
        left = left[count:]


@contextmanager
def _in_place_of_blocks(model: PreTrainedModel, give: Callable[..., Any]) -> Iterator[None]:
    """Inside, calls of the blocks give what `give` makes of their number and arguments."""
    modules = [block.module for block in blocks_of(model)]
    own = [vars(module).get("forward") for module in modules]
    for index, module in enumerate(modules):
        module.forward = partial(give, index)
    try:
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward

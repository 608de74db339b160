"""A model that runs one block at a time: each is judged by what the blocks before it, already changed, send it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.model.anatomy import Block, anatomy_of, blocks_of
from optimum_slim.progress import progress

Statistic = Callable[[Tensor], Tensor]  # of rows [rows, K]; of more rows it is the sum


def squares(rows: Tensor) -> Tensor:
    """x^2, summed: [K]. Their mean is the square of Wanda's input norm, up to the number of rows."""
    return rows.square().sum(0)


def products(rows: Tensor) -> Tensor:
    """X^T X: [K, K]. SparseGPT's Hessian is twice its mean."""
    return rows.T @ rows


@torch.no_grad()
def blocks_in_turn(
    model: PreTrainedModel, names: Collection[str], batches: Batches, statistic: Statistic
) -> Iterator[tuple[Block, dict[str, Tensor]]]:
    """The blocks, first to last, each with a statistic of what its linears read. A block that the caller changes before
    asking for the next sends on what it computes then, as in the published code of Wanda and SparseGPT.

    The inputs and statistics of one block are held at a time. Between two blocks there is no hook in the model.

    Args:
        model: a running model. names: the linears that are asked for, as in `named_modules()`; blocks without one are
        run but not told. batches: tokenized texts with an `attention_mask` [batch, tokens].
        statistic: `squares` or `products`.

    Yields:
        The block, and for each linear the statistic's mean over real tokens, float32. Linears that read the same
        tensor share theirs.
    """
    blocks = list(blocks_of(model))
    wanted = [_linears(block, names) for block in blocks]
    texts = [_Text(model, blocks, batch) for batch in progress(batches, "calibrating")]
    last = max((block.index for block, linears in zip(blocks, wanted, strict=True) if linears), default=-1)
    turns = list(zip(blocks, wanted, strict=True))[: last + 1]
    for block, linears in progress(turns, "block by block"):
        if linears:
            yield block, _statistics(block, linears, texts, statistic)
        if block.index < last:
            for text in texts:
                text.states = text.through(block)


class _Text:
    """A batch of texts on its way through the blocks."""

    states: Tensor  # what the next block reads, [batch, tokens, hidden]
    real: Tensor  # bool [batch * tokens]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]  # what each block is given besides: masks, positions

    def __init__(self, model: PreTrainedModel, blocks: list[Block], batch: Mapping[str, Tensor]):
        inputs = {key: value.to(model.device) for key, value in batch.items()}
        self.real = inputs["attention_mask"].flatten().bool()
        self.calls = []

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.calls:
                self.states = args[0]
            self.calls.append((args[1:], kwargs))

        hooks = [block.module.register_forward_pre_hook(record, with_kwargs=True) for block in blocks]
        try:
            model.base_model(**inputs, **({"use_cache": False} if anatomy_of(model).causal else {}))
        finally:
            for hook in hooks:
                hook.remove()

    def through(self, block: Block) -> Tensor:
        """What the block makes of the states."""
        args, kwargs = self.calls[block.index]
        output = block.module(self.states, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


def _linears(block: Block, names: Collection[str]) -> dict[str, nn.Module]:
    inside = {f"{block.name}.{path}": module for path, module in block.module.named_modules()}
    return {name: module for name, module in inside.items() if name in names}


def _statistics(
    block: Block, linears: Mapping[str, nn.Module], texts: list[_Text], statistic: Statistic
) -> dict[str, Tensor]:
    """Runs a block over all texts. Queries, keys and values read one tensor: its statistic is computed once."""
    sums: dict[str, Tensor] = {}
    first: dict[str, str] = {}  # of the linears that read the same tensor, the one that reads it first
    latest: tuple[Tensor, str] | None = None
    real = torch.ones(0, dtype=torch.bool)

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal latest
            if latest is None or latest[0] is not inputs[0]:
                latest = inputs[0], name
                found = statistic(inputs[0].flatten(0, -2)[real].float())
                sums[name] = sums[name] + found if name in sums else found
            first[name] = latest[1]

        return add

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    try:
        for text in texts:
            real = text.real
            text.through(block)
            latest = None
    finally:
        for hook in hooks:
            hook.remove()
    rows = sum(int(text.real.sum()) for text in texts)
    means = {name: total / rows for name, total in sums.items()}
    return {name: means[first[name]] for name in linears}

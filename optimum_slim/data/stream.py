"""A model that runs one block at a time: each is judged by what the blocks before it, already changed, send it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.data.through import Statistic, on_their_way, send_on, statistics_of
from optimum_slim.model.anatomy import Block, blocks_of
from optimum_slim.model.streamed import held
from optimum_slim.model.turns import Pass, tell
from optimum_slim.progress import progress

# The mean of x^2: [K]. It is the square of Wanda's input norm, up to the number of rows.
squares = Statistic(lambda rows: rows.square().sum(0))
# The mean of x^T x: [K, K]. SparseGPT's Hessian is twice as much.
products = Statistic(lambda rows: rows.T @ rows)
# The largest |x| of each input: [K].
largest = Statistic(lambda rows: rows.abs().amax(0), torch.maximum, mean=False)


@torch.no_grad()
def blocks_in_turn(
    model: PreTrainedModel, names: Collection[str], batches: Batches, statistic: Statistic, changes: bool = True
) -> Iterator[tuple[Block, dict[str, Tensor]]]:
    """The blocks, first to last, each with a statistic of what its linears read. A block that the caller changes before
    asking for the next sends on what it computes then, as in the published code of Wanda and SparseGPT.

    The inputs and statistics of one block are held at a time, and of a streamed model its weights. Between two blocks
    there is no hook in the model.

    Args:
        model: a running model. names: the linears that are asked for, as in `named_modules()`; blocks without one are
        run but not told. batches: tokenized texts with an `attention_mask` [batch, tokens].
        statistic: `squares`, `products`, `largest` or another.
        changes: what becomes of each block, its weights, sizes and grids, is kept, with the error of it (see
        `relative_error`). A streamed step that was broken off goes on at its block: those that are finished are not
        told again. Without, the caller only looks, and all blocks are told.

    Yields:
        The block, and for each linear the statistic of all real tokens, float32. Linears that read the same tensor
        share theirs.
    """
    blocks = list(blocks_of(model))
    wanted = [_linears(block, names) for block in blocks]
    last = max((block.index for block, linears in zip(blocks, wanted, strict=True) if linears), default=-1)
    turns = list(zip(blocks, wanted, strict=True))[: last + 1]
    texts = on_their_way(model, batches) if turns else []
    turn = Pass(model) if changes else None
    for block, linears in (bar := progress(turns, "block by block")):
        begun, old = time.monotonic(), list[Tensor]()
        finished = turn is not None and turn.has_finished(block)
        asked = bool(linears) and not finished
        if turn is not None and finished:
            turn.take_up(block)
        with held(model, block.name):
            if asked:
                found, old = statistics_of(block, linears, texts, statistic)
                yield block, found
                del found
            if asked and turn is None:  # nothing has changed: what the block makes of the texts is known
                for text, states in zip(texts, old, strict=True):
                    text.states = states
                continue
            error = send_on(block, texts, old) if asked or block.index < last else None
            if asked and turn is not None:
                seconds = time.monotonic() - begun
                turn.finish(block, seconds, error)
                tell(bar, block, seconds, error)


def _linears(block: Block, names: Collection[str]) -> dict[str, nn.Module]:
    inside = {f"{block.name}.{path}": module for path, module in block.module.named_modules()}
    return {name: module for name, module in inside.items() if name in names}

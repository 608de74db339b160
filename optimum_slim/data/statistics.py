"""What passes through a model's linears on calibration texts: streamed, so that no activation is kept."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimum_slim.data.through import (
    Batch,
    Statistic,
    Text,
    in_groups,
    on_their_way,
    one_by_one,
    send_on,
    statistics_of,
)
from optimum_slim.model.anatomy import Block, blocks_of
from optimum_slim.model.shape import in_features
from optimum_slim.model.streamed import HEAD, OUTSIDE, held
from optimum_slim.model.turns import Pass, tell
from optimum_slim.progress import progress

GRAM_BYTES = 2**29  # of second moments that are held at a time

Batches = Sequence[Batch]


@torch.no_grad()
def grams_in_turn(
    model: PreTrainedModel, role: str, indices: Collection[int], batches: Batches
) -> Iterator[tuple[Block, Tensor]]:
    """Second moments of what one linear of each chosen block reads, as many blocks at a time as fit in `GRAM_BYTES`.
    Who cuts a block before asking for the next has later blocks judged by what the cut ones send. As in
    `stream.blocks_in_turn` what becomes of each block is kept, and one that is finished is not told again.

    Args:
        model: a running model. role: the linear, as in Anatomy ("ffn_out", "output"). indices: the blocks.
        batches: tokenized texts with an `attention_mask`.

    Yields:
        The block, and X^T X / rows, float32 [K, K], where X [rows, K] is what its linear reads at all real tokens. A
        bias counts as one more input, always 1.
    """
    blocks, turn = list(blocks_of(model)), Pass(model)
    chosen = [block for block in blocks if block.index in indices]
    texts = on_their_way(model, batches) if chosen else []
    at = 0  # the block that the texts stand before
    while chosen:
        size = 4 * in_features(getattr(chosen[0], role)) ** 2
        count = max(1, GRAM_BYTES // size)
        part, chosen = chosen[:count], chosen[count:]
        way, at = blocks[at : part[-1].index + 1], part[-1].index + 1
        asked = [block for block in part if not turn.has_finished(block)]
        grams = _grams(model, role, way, asked, texts) if asked else {}
        for block in (bar := progress(way, "block by block")):
            begun, old = time.monotonic(), list[Tensor]()
            told = block in asked
            if block in part and not told:
                turn.take_up(block)
            with held(model, block.name):
                if told:
                    old = [text.through(block) for text in texts]
                    yield block, grams.pop(block.index)
                error = send_on(block, texts, old)
                if told:
                    seconds = time.monotonic() - begun
                    turn.finish(block, seconds, error)
                    tell(bar, block, seconds, error)


def _grams(
    model: PreTrainedModel, role: str, way: Sequence[Block], asked: Sequence[Block], texts: Sequence[Text]
) -> dict[int, Tensor]:
    """Second moments by block as long as nothing changes. In the end the texts stand where they stood."""
    starts, grams = [text.states for text in texts], dict[int, Tensor]()
    for block in progress(way, "calibrating"):
        linear = getattr(block, role)
        with held(model, block.name):
            watched = {role: linear} if block in asked else {}
            found, states = statistics_of(block, watched, texts, Statistic(partial(_products, linear.bias is not None)))
        if found:
            grams[block.index] = found[role]
        for text, after in zip(texts, states, strict=True):
            text.states = after
    for text, start in zip(texts, starts, strict=True):
        text.states = start
    return grams


def _products(biased: bool, rows: Tensor) -> Tensor:
    """X^T X, where a bias is the weight of one more input that is always 1."""
    whole = _with_ones(biased, rows)
    return whole.T @ whole


def _with_ones(biased: bool, rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if biased else rows


@torch.no_grad()
def block_influences(model: PreTrainedModel, batches: Batches) -> Tensor:
    """How much each block turns its input: 1 - cos(input, output), averaged over real tokens (ShortGPT,
    arXiv:2403.03853, eq. 1).

    Returns:
        float32 [blocks].
    """
    blocks, texts = list(blocks_of(model)), on_their_way(model, batches)
    turns = torch.zeros(len(blocks))
    for block in progress(blocks, "calibrating"):
        with held(model, block.name):
            for text in texts:
                after = text.through(block)
                before = text.states[text.real].float()
                cosines = nn.functional.cosine_similarity(before, after[text.real].float(), dim=-1)
                turns[block.index] += (1 - cosines).sum().cpu()
                text.states = after
    return turns / sum(int(text.real.sum()) for text in texts)


@torch.no_grad()
def losses_without(model: PreTrainedModel, batches: Batches, gone: Collection[int] = ()) -> Tensor:
    """What a decoder loses at the next tokens of the texts while one of its blocks is left out: the metric by which
    SLEB (arXiv:2402.09025, eq. 1) finds redundant blocks. One way through the blocks serves all of them.

    Args:
        batches: tokenized texts with an `attention_mask`. gone: blocks that are left out already.

    Returns:
        Mean negative log-likelihood of all real tokens but the first of a text, in nats, by the block that is left out:
        float32 [blocks]; infinite for those that are gone.
    """
    texts = one_by_one(batches)  # the logits of a batch would fill the memory
    blocks = list(blocks_of(model))
    left = [block for block in blocks if block.index not in gone]
    nats, tokens = torch.full([len(blocks)], torch.inf), 0
    nats[[block.index for block in left]] = 0
    bar = progress(None, "leaving layers out", total=len(texts) * len(left))
    for group in in_groups(model, texts, len(left) + 1):
        on_way, without = on_their_way(model, group), [dict[int, Tensor]() for _ in group]
        for block in left:
            with held(model, block.name):
                for text, others in zip(on_way, without, strict=True):
                    whole = text.states
                    for other, text.states in others.items():
                        others[other] = text.through(block)
                    text.states = others[block.index] = whole
                    text.states = text.through(block)
                    bar.update()
        with held(model, OUTSIDE, HEAD):
            for text, others in zip(on_way, without, strict=True):
                told = text.real[0, :-1] & text.real[0, 1:]
                tokens += int(told.sum())
                truth = text.inputs["input_ids"][0, 1:]
                for other, text.states in others.items():
                    logits = text.outputs(model).logits[0, :-1].float()
                    nats[other] += nn.functional.cross_entropy(logits, truth, reduction="none")[told].sum().cpu()
    bar.close()
    return nats / tokens


@torch.no_grad()
def moments_across(
    model: PreTrainedModel, gaps: Mapping[int, int], batches: Batches
) -> dict[int, tuple[Tensor, Tensor]]:
    """What the last linear of a block's feed-forward reads, and what the blocks behind it add.

    Args:
        model: of a family whose blocks add to their inputs. gaps: by the number of a block that of the last one whose
            additions are asked for. batches: tokenized texts with an `attention_mask`.

    Returns:
        For each of `gaps` X^T X / rows, float32 [K, K], and D^T X / rows, float32 [hidden, K], where X [rows, K] is
        what the linear reads at all real tokens, and D [rows, hidden] what the last block gives less what the first
        does. A bias counts as one more input, always 1.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    if not gaps:
        return found
    texts, first = on_their_way(model, batches), {last: block for block, last in gaps.items()}
    rows = sum(int(text.real.sum()) for text in texts)
    read: list[tuple[dict[str, Tensor], list[Tensor]]] = []  # of each text what the linear reads, and its block gives
    for block in progress(list(blocks_of(model))[: max(gaps.values()) + 1], "calibrating"):
        with held(model, block.name):
            if block.index in gaps:
                rows_read = Statistic(partial(_with_ones, block.ffn_out.bias is not None), mean=False)
                read = [statistics_of(block, {"ffn_out": block.ffn_out}, [text], rows_read) for text in texts]
                for text, (_, (after,)) in zip(texts, read, strict=True):
                    text.states = after
            else:
                send_on(block, texts, [])
        if block.index in first:
            gram, cross = torch.zeros(()), torch.zeros(())
            for text, (linears, (before,)) in zip(texts, read, strict=True):
                inputs, added = linears["ffn_out"], (text.states - before)[text.real].float()
                gram, cross = gram + inputs.T @ inputs, cross + added.T @ inputs
            found[first[block.index]] = gram / rows, cross / rows
    return found

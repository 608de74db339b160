"""The ranges of activations, from texts that run one at a time: memory does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal

import numpy as np
import onnx
import onnxruntime

from optimum_slim.data.statistics import Batches
from optimum_slim.deploy.benchmark import feeds
from optimum_slim.deploy.machine import session_options
from optimum_slim.deploy.memory import opened
from optimum_slim.errors import DataError, ModelError
from optimum_slim.kernels.session import read_all_logits
from optimum_slim.progress import progress

Method = Literal["minmax", "entropy", "percentile"]
Range = tuple[float, float]  # lowest and highest value

BINS = 2048  # of a histogram
QUANTIZED_BINS = 128  # to which entropy compares it, as TensorRT and ONNX Runtime do
PERCENTILE = 99.99  # of the values are within the range


def input_ranges(graph: onnx.ModelProto, names: Collection[str], texts: Batches, method: Method) -> dict[str, Range]:
    """The range of values of a graph on texts, by name.

    Args:
        graph: an fp32 export. names: float values in it.
        texts: tokenized, with an `attention_mask`; padding is cut off, so that each runs as a server would meet it.
        method: `minmax`: all that is seen; `percentile`: without the outermost; `entropy`: the range whose integers
        tell most of the distribution.

    Raises:
        DataError: there are no texts. ModelError: a value is not finite.
    """
    if not names:
        return {}
    if not texts:
        raise DataError("deploy.precision: int8-static needs texts to calibrate; give `data` a train split")
    # One thread: sums in another order would end in another range, and another file.
    with opened(graph, list(names), alone=True, options=read_all_logits(session_options(1))) as session:

        def values(what: str) -> Iterator[tuple[str, np.ndarray]]:
            for text in progress(list(_single(texts)), what):
                yield from zip(names, session.run(list(names), _inputs(session, text)), strict=True)

        widest = _widest(values("calibrating"))
        if method == "minmax":
            return widest
        histograms = {name: np.zeros(BINS, np.int64) for name in names}
        for name, found in values("counting"):
            largest = max(map(abs, widest[name]))
            histograms[name] += np.histogram(found, BINS, (-largest, largest))[0]
    narrow = {"percentile": percentile_threshold, "entropy": entropy_threshold}[method]
    return {name: _narrowed(widest[name], histograms[name], narrow) for name in names}


def percentile_threshold(histogram: np.ndarray) -> int:
    """How many bins on either side of 0 hold `PERCENTILE` percent of the values.

    Args:
        histogram: counts int [2 n], symmetric around 0.
    """
    half = len(histogram) // 2
    within = np.cumsum(histogram[half:] + histogram[:half][::-1])
    return int(np.searchsorted(within, within[-1] * PERCENTILE / 100)) + 1


def entropy_threshold(histogram: np.ndarray, levels: int = QUANTIZED_BINS) -> int:
    """How many bins on either side of 0 to keep, so that `levels` integers lose least of the distribution: the smallest
    KL divergence of the clipped histogram from its quantized form (Migacz, "8-bit inference with TensorRT", GTC 2017).

    Args:
        histogram: counts int [2 n], symmetric around 0; n at least levels / 2.
    """
    half = len(histogram) // 2
    kept = range(levels // 2, half + 1)
    losses = [_divergence(histogram, half, count, levels) for count in kept]
    return kept[int(np.argmin(losses))]


def _divergence(histogram: np.ndarray, half: int, count: int, levels: int) -> float:
    inside = histogram[half - count : half + count].astype(np.float64)
    clipped = inside.copy()
    clipped[0] += histogram[: half - count].sum()
    clipped[-1] += histogram[half + count :].sum()
    merged = len(inside) // levels
    starts = np.arange(levels) * merged
    level = np.minimum(np.arange(len(inside)) // merged, levels - 1)
    filled = clipped > 0
    share = np.add.reduceat(inside, starts) / np.maximum(np.add.reduceat(filled, starts, dtype=np.int64), 1)
    quantized = np.where(filled, share[level], 0.0)
    p, q = clipped / clipped.sum(), quantized / max(quantized.sum(), 1.0)
    both = p > 0
    # A bin that only outliers fill has nothing in the quantized form: it must cost, but not everything.
    return float((p[both] * np.log(p[both] / np.maximum(q[both], 1e-4 / len(p)))).sum())


def _widest(values: Iterator[tuple[str, np.ndarray]]) -> dict[str, Range]:
    found: dict[str, Range] = {}
    for name, array in values:
        (low, high), least, most = found.get(name, (0.0, 0.0)), float(array.min()), float(array.max())
        if not (math.isfinite(least) and math.isfinite(most)):
            raise ModelError(f"{name}: values are not finite on the calibration texts, so they have no range")
        found[name] = (min(low, least), max(high, most))
    return found


def _narrowed(widest: Range, histogram: np.ndarray, narrow: Callable[[np.ndarray], int]) -> Range:
    largest = max(map(abs, widest))
    threshold = narrow(histogram) * largest / (len(histogram) // 2)
    return max(widest[0], -threshold), min(widest[1], threshold)


def _single(texts: Batches) -> Iterator[dict[str, np.ndarray]]:
    """Each text by itself, without its padding: [1, tokens]."""
    for batch in texts:
        for row, mask in enumerate(batch["attention_mask"].bool()):
            yield {name: value[row][mask][None].numpy() for name, value in batch.items() if value.ndim == 2}


def _inputs(session: onnxruntime.InferenceSession, text: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a graph wants to be given for a text: also positions and an empty cache, for a decoder."""
    made = feeds(session, "prefill", 1, text["input_ids"].shape[1])
    return made | {name: text[name] for name in made if name in text}

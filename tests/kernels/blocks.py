"""Random layers whose weights stand in blocks, and what they must compute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx.onnx_pb import ModelProto

from optimum_slim.kernels.blocked import packed
from optimum_slim.kernels.model import blocked_model


@dataclass
class Blocks:
    integers: np.ndarray  # [N, K]
    scales: np.ndarray  # [N, blocks]
    zero_points: np.ndarray | None  # [N, blocks]
    bits: int
    block: int

    def model(self, functions: bool = True, meeting: str = "") -> ModelProto:
        outputs, blocks = self.scales.shape
        stored = packed(self.integers, self.bits).reshape(outputs, blocks, -1)
        zero_points = packed(self.zero_points, self.bits) if self.zero_points is not None else None
        return blocked_model(stored, self.scales.reshape(-1), zero_points, self.bits, functions, meeting)

    def product(self, x: np.ndarray) -> np.ndarray:
        outputs, blocks = self.scales.shape
        rows = x.reshape(len(x), blocks, self.block)
        largest = np.maximum(np.abs(rows).max(-1), np.float32(1e-30))
        values = np.round(rows * (np.float32(127) / largest)[..., None]).astype(np.int64)
        middle = np.full(self.scales.shape, 2 ** (self.bits - 1)) if self.zero_points is None else self.zero_points
        weights = self.integers.reshape(outputs, blocks, -1).astype(np.int64) - middle[..., None]
        sums = np.einsum("mbk,nbk->bmn", values, weights).astype(np.float32)
        y = np.zeros((len(x), outputs), np.float32)
        for block in range(blocks):
            y += (sums[block] * (largest[:, block, None] / np.float32(127))) * self.scales[:, block]
        return y


def random_blocks(n: int, k: int, bits: int, block: int, asymmetric: bool = False, seed: int = 0) -> Blocks:
    rng = np.random.default_rng((seed, n, k))
    scales = rng.random((n, k // block), np.float32) + np.float32(0.5)
    zero_points = rng.integers(0, 16, scales.shape).astype(np.uint8) if asymmetric else None
    return Blocks(rng.integers(0, 2**bits, (n, k)).astype(np.uint8), scales, zero_points, bits, block)

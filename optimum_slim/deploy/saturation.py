"""Can a product of 8-bit integers in a file overflow? On x86 without VNNI two neighbouring products of unsigned
activations and signed weights are added in 16 bits, which saturate (the instruction PMADDUBSW). ONNX Runtime runs
uint8 by int8 that way, and other pairs of types exactly; of a product in QDQ it makes int8 activations uint8."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from optimum_slim.deploy.machine import cpu_flags
from optimum_slim.deploy.stored import read_graph
from optimum_slim.deploy.wiring import Wiring, attribute_of

LIMIT = 32767 // 255  # what two weights of one sign may add up to: activations are at most 255
# Where products of quantized activations and weights have them.
_OPERANDS = {
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QAttention": (0, 1),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
}
_MOVES = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True)
class Product:
    """A product with a stored weight of 8-bit integers."""

    node: str
    pairs: int  # neighbours whose products can overflow in 16 bits; 0 where they are added in more


def saturates_here() -> bool:
    """Whether this CPU adds products of bytes in 16 bits."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not {"avx_vnni", "avx512_vnni"} & set(cpu_flags())


def products_in(path: Path) -> list[Product]:
    """Every product of 8-bit integers with a stored weight in an ONNX file, also written as QDQ or SlimLinear.

    MatMulNBits is none of them: its kernels multiply signed by signed bytes.
    """
    graph = read_graph(path)
    wiring = Wiring(graph)
    return [Product(node.name, pairs) for node in graph.graph.node for pairs in _pairs(wiring, node)]


def overflowing_pairs(weight: np.ndarray) -> int:
    """How many pairs of neighbouring inputs overflow, for some activations.

    Args:
        weight: int8 [.., K, N], as it is multiplied: a zero point is subtracted later.
    """
    wide = weight[..., : weight.shape[-2] // 2 * 2, :].astype(np.int16)
    first, second = wide[..., ::2, :], wide[..., 1::2, :]
    above = np.maximum(first, 0) + np.maximum(second, 0)
    below = np.maximum(-first, 0) + np.maximum(-second, 0)
    return int(((above > LIMIT) | (below > LIMIT)).sum())


def _pairs(wiring: Wiring, node: onnx.NodeProto) -> Iterator[int]:
    """The overflowing pairs of a node, if it is such a product."""
    if node.op_type.startswith("SlimLinear"):
        values = wiring.stored.get(node.input[2])
        if values is not None:
            # FORMAT.md knows bytes without sign only: both its kernels and its function are exact.
            yield 0
        return
    if node.op_type in ("MatMul", "Gemm"):
        x, weight = (_dequantized(wiring, name) for name in node.input[:2])
        turned = node.op_type == "Gemm" and bool(attribute_of(node, "transB", 0))
    elif node.op_type in _OPERANDS:
        x, weight = (node.input[at] for at in _OPERANDS[node.op_type])
        turned = False
    else:
        return
    if x is None or weight is None:
        return
    stored = _stored(wiring, weight)
    if stored is None or stored.dtype not in (np.int8, np.uint8):
        return
    unsigned = node.op_type in ("MatMul", "Gemm", "DynamicQuantizeMatMul") or _is_unsigned(wiring, x)
    yield (
        overflowing_pairs(stored.swapaxes(-1, -2) if turned else stored) if unsigned and stored.dtype == np.int8 else 0
    )


def _dequantized(wiring: Wiring, name: str) -> str | None:
    """The integers behind a value, where a DequantizeLinear makes it."""
    node = wiring.makers.get(name)
    while node is not None and node.op_type in _MOVES[:2]:
        node = wiring.makers.get(node.input[0])
    return node.input[0] if node is not None and node.op_type == "DequantizeLinear" else None


def _stored(wiring: Wiring, name: str) -> np.ndarray | None:
    """The stored value behind one that was only moved, moved likewise."""
    node = wiring.makers.get(name)
    if node is None or node.op_type not in _MOVES:
        return wiring.constant(name)
    value = _stored(wiring, node.input[0])
    if value is not None and node.op_type == "Transpose":
        return value.transpose(attribute_of(node, "perm", None))
    if value is not None and node.op_type == "Reshape":
        sizes = wiring.constant(node.input[1])
        return value.reshape(sizes) if sizes is not None else None
    return value


def _is_unsigned(wiring: Wiring, name: str) -> bool:
    """Whether quantized activations are uint8: by their QuantizeLinear; others are taken to be."""
    node = wiring.makers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = wiring.makers.get(node.input[0])
    if node is None or node.op_type != "QuantizeLinear":
        return True
    zero_point = wiring.tensor(node.input[2]) if len(node.input) > 2 else None
    return zero_point is None or zero_point.data_type == TensorProto.UINT8

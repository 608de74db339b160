"""Attention with a cache in an exported graph, as the operator that ONNX has for it: same results, far fewer nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper
from onnxscript.rewriter.pattern import ANY_VALUE, MatchResult, RewriteRuleClassBase, Var

from optimum_slim.deploy.benchmark import feeds
from optimum_slim.deploy.graph import add_functions, drop_dead_nodes, drop_unused, put_nodes, replace_node
from optimum_slim.deploy.memory import opened, thinned
from optimum_slim.deploy.rewriting import numbers_in, rewritten
from optimum_slim.deploy.wiring import Wiring
from optimum_slim.kernels.attention import (
    CACHED_ATTRIBUTES,
    CACHED_INPUTS,
    CACHED_OPSET,
    ROTARY_ATTENTION,
    cached_attention_node,
    rotary_attention_function,
)

OPSET = CACHED_OPSET  # ONNX Runtime has it since 1.23
CLOSE = 1e-4  # of the largest value: what rounding in another order may change
BATCH, PADDED = 2, 2
STEPS = (5, 1, 3)  # tokens read at once, one after the other, to prove that the answers are the same

PAST = "past_key_values"

_END = sys.maxsize  # torch's `x[half:]`


def fuse_cached_attention(graph: onnx.ModelProto) -> int:
    """Makes each attention with rotary embeddings and a cache two RotaryEmbeddings and one Attention (ONNX opset 23),
    in place; returns how many. Shapes must be written down (`freeze_shapes`), and scores scaled once (`fold_scales`).

    Cosines, sines and the mask stay as the export computes them, so what a family does with positions, padding and
    windows still holds. A graph whose answers would change stays as it was.

    Not `com.microsoft::GroupQueryAttention`: in ONNX Runtime 1.32 it refuses batches that read several tokens after a
    cache and head sizes that 8 does not divide, gives all texts of a first prompt the positions of the first one, and
    takes a third longer.
    """
    if not any(value.name.startswith(PAST) for value in graph.graph.input):
        return 0
    nodes = rewritten(graph, [_CachedAttention.rule(grouped) for grouped in (True, False)], OPSET)
    made = sum(node.op_type == "Attention" for node in nodes)
    if not made:
        return 0
    wanted, before = list(_answers(graph)), list(graph.graph.node)
    opset = next(one for one in graph.opset_import if one.domain in ("", "ai.onnx"))
    version = opset.version
    put_nodes(graph, nodes)
    opset.version = max(version, OPSET)
    if not _answers_as(graph, wanted):
        put_nodes(graph, before)
        opset.version = version
        return 0
    drop_dead_nodes(graph)
    drop_unused(graph)
    return made


def own_cached_attention(graph: onnx.ModelProto) -> int:
    """Makes each Attention that `fuse_cached_attention` made, and the RotaryEmbeddings before it, one node that our
    kernels run, in place; returns how many."""
    wiring, made = Wiring(graph), 0
    for node in [one for one in graph.graph.node if one.op_type == "Attention" and not one.domain]:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if set(attributes) != set(CACHED_ATTRIBUTES) or len(node.input) != len(CACHED_INPUTS) or not all(node.input):
            continue
        query, key = (wiring.made_by(name, "RotaryEmbedding") for name in node.input[:2])
        if query is None or key is None or not (_turns_halves(query) and _turns_halves(key)):
            continue
        inputs = [query.input[0], key.input[0], *node.input[2:], *query.input[1:], *key.input[1:]]
        graph.graph.node.remove(query)
        graph.graph.node.remove(key)
        replace_node(graph, node, cached_attention_node(ROTARY_ATTENTION, inputs, node.output, node.name, **attributes))
        made += 1
    if made:
        add_functions(graph, [rotary_attention_function()])
    return made


def _turns_halves(turn: onnx.NodeProto) -> bool:
    """Whether a RotaryEmbedding turns whole heads by halves, as `fuse_cached_attention` makes it."""
    return len(turn.input) == 3 and [one.name for one in turn.attribute] == ["num_heads"]


class _CachedAttention(RewriteRuleClassBase):
    """Attention of the Llama family, as the exporter writes torch's scaled_dot_product_attention after
    `rotate_half` (Su et al., arXiv:2104.09864, by halves instead of pairs)."""

    def __init__(self, grouped: bool):
        # Others read the shapes of repeated keys. What nothing reads any more is dropped afterwards.
        super().__init__(remove_nodes=False)
        self.grouped = grouped
        self.halves: dict[ir.Value, ir.Value] = {}

    def pattern(
        self, op: Any, query: Any, key: Any, value: Any, past_key: Any, past_value: Any, cos: Any, sin: Any, mask: Any
    ) -> Any:
        q = _rotated(op, _turned(op, query), cos, sin, "query")
        k = op.Concat(past_key, _rotated(op, _turned(op, key), cos, sin, "key"), axis=-2)
        v = op.Concat(past_value, _turned(op, op.Reshape(value, Var("by_head"))), axis=-2)
        scores = op.MatMul(op.Mul(q, Var("scale")), op.Transpose(self._repeated(op, k), perm=[0, 1, 3, 2]))
        masked = op.Add(scores, op.Where(op.Slice(mask, [0], ANY_VALUE, [3], [1]), [0.0], [-np.inf]))
        shares = op.Softmax(masked, axis=-1)
        shares = op.Where(op.IsNaN(shares), [0.0], shares)  # of queries that see nothing
        mixed = op.MatMul(shares, self._repeated(op, v))
        return op.Reshape(_turned(op, mixed), Var("joined"), _outputs=["output"]), k, v

    def _repeated(self, op: Any, x: Any) -> Any:
        """The keys or values of a head, for each of the queries that share it."""
        return op.Reshape(op.Expand(op.Unsqueeze(x, [2]), ANY_VALUE), ANY_VALUE) if self.grouped else x

    def check(self, op: Any, *args: Any, **found: Any) -> MatchResult:
        sizes, width = numbers_in(found["by_head"]), numbers_in(found["joined"])
        if len(sizes) != 4 or len(width) != 3 or [*sizes[:2], *width[:2]] != [0, 0, 0, 0]:
            return MatchResult().fail("heads are not split and joined by sizes that are written down")
        kv_heads, size = sizes[2:]
        if min(kv_heads, size) < 1 or width[2] % (kv_heads * size) or not numbers_in(found["scale"]):
            return MatchResult().fail("heads of queries are not shared evenly, or scaled by no constant")
        halves = [numbers_in(found[name]) for name in ("query_from", "query_to", "key_from", "key_to")]
        if any(half != [size // 2] for half in halves) or not all(_unsqueezed(found[name]) for name in ("cos", "sin")):
            return MatchResult().fail("heads are not rotated as a whole")
        return MatchResult()

    def rewrite(self, op: Any, *args: Any, **found: Any) -> Any:
        kv_heads, size = numbers_in(found["by_head"])[2:]
        heads = numbers_in(found["joined"])[2] // size
        path = found["output"].producer().name.rpartition("/")[0]
        cos, sin = (self._half(op, _unsqueezed(found[name]), size // 2) for name in ("cos", "sin"))
        query, key = (
            op.RotaryEmbedding(_flat(op, found[name]), cos, sin, num_heads=count, _name=f"{path}/{name}/Rotary")
            for name, count in (("query", heads), ("key", kv_heads))
        )
        past = [_cache(op, found[name], kv_heads, size) for name in ("past_key", "past_value")]
        return op.Attention(
            *(query, key, found["value"], found["mask"], *past),
            q_num_heads=heads,
            kv_num_heads=kv_heads,
            scale=numbers_in(found["scale"])[0],
            _name=f"{path}/Attention",
            _outputs=3,
        )

    def _half(self, op: Any, angles: ir.Value, size: int) -> ir.Value:
        """The first half of cosines or sines [batch, tokens, size of a head], whose second is the same."""
        if angles not in self.halves:
            bounds = (_constant(op, numbers) for numbers in ([0], [size], [2]))
            self.halves[angles] = op.Slice(angles, *bounds, _name=f"{angles.name}.half")
        return self.halves[angles]


def _turned(op: Any, x: Any) -> Any:
    return op.Transpose(x, perm=[0, 2, 1, 3])


def _rotated(op: Any, x: Any, cos: Any, sin: Any, name: str) -> Any:
    second = op.Slice(x, Var(f"{name}_from"), [_END], [3], [1])
    first = op.Slice(x, [0], Var(f"{name}_to"), [3], [1])
    return op.Add(op.Mul(x, cos), op.Mul(op.Concat(op.Neg(second), first, axis=-1), sin))


def _constant(op: Any, numbers: Sequence[int]) -> ir.Value:
    return op.Constant(value=ir.tensor(numbers, dtype=ir.DataType.INT64))


def _unsqueezed(value: ir.Value) -> Any:
    """Cosines or sines [batch, tokens, size] before they became [batch, 1, tokens, size]; None where they did not."""
    node = value.producer()
    if node is None or node.op_type != "Unsqueeze" or numbers_in(node.inputs[1]) != [1]:
        return None
    return node.inputs[0]


def _flat(op: Any, x: ir.Value) -> Any:
    """Queries or keys [batch, tokens, heads, size] as [batch, tokens, width], from before they were split if so."""
    node = x.producer()
    if node is not None and node.op_type == "Reshape" and numbers_in(node.inputs[1])[:2] == [0, 0]:
        return node.inputs[0]
    return op.Reshape(x, _constant(op, [0, 0, -1]))


def _cache(op: Any, past: ir.Value, heads: int, size: int) -> ir.Value:
    """Past keys or values. Where their sizes are free, an empty cache may come in any (`free_cache_dimensions`)."""
    known = past.shape is not None and [past.shape[1], past.shape[3]] == [heads, size]
    return past if known else op.Reshape(past, _constant(op, [0, heads, -1, size]))


def _answers(graph: onnx.ModelProto) -> Iterator[dict[str, np.ndarray]]:
    """Logits and caches of two texts, the second padded on its left, read in `STEPS`; zeros at padding. Others stand
    for large weights: the attention between them does not depend on what they are."""
    with opened(thinned(graph)) as session:
        names = [value.name for value in session.get_outputs()]
        inputs = {name: value for name, value in feeds(session, "prefill", BATCH, STEPS[0]).items() if PAST in name}
        read = 0
        for tokens in STEPS:
            inputs |= _texts(session, read, tokens)
            read += tokens
            real = _mask(read)[:, None, :, None] > 0
            found = dict(zip(names, session.run(None, inputs), strict=True))
            inputs |= {name.replace("present", PAST): value for name, value in found.items() if "present" in name}
            yield {
                name: value * (real if "present" in name else real[:, 0, read - tokens :])
                for name, value in found.items()
            }


def _texts(session: onnxruntime.InferenceSession, read: int, tokens: int) -> dict[str, np.ndarray]:
    """The next tokens after those that were read, with what else a decoder asks for."""
    mask = _mask(read + tokens)
    made = {
        "input_ids": np.random.default_rng(read).integers(1, 64, (BATCH, tokens)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, read:],
    }
    return {value.name: made[value.name] for value in session.get_inputs() if value.name in made}


def _mask(tokens: int) -> np.ndarray:
    mask = np.ones((BATCH, tokens), np.int64)
    mask[1, :PADDED] = 0
    return mask


def _answers_as(graph: onnx.ModelProto, wanted: Sequence[Mapping[str, np.ndarray]]) -> bool:
    try:
        return all(_alike(found, right) for found, right in zip(_answers(graph), wanted, strict=True))
    except Exception:  # onnxruntime raises classes of its C++ module, where it knows no such operator
        return False


def _alike(found: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> bool:
    return all(np.abs(found[name] - value).max() <= CLOSE * np.abs(value).max() for name, value in right.items())

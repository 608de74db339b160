"""Norms as one node each: LayerNorm with the residual before it, and the RMSNorm of decoders."""

from __future__ import annotations

from typing import Any

import onnx
from onnxscript.rewriter.pattern import MatchResult, OrValue, RewriteRuleClassBase

from optimum_slim.deploy.glue import observed
from optimum_slim.deploy.graph import add_functions, drop_unused, opset_of, put_nodes, replace_node
from optimum_slim.deploy.rewriting import numbers_in, rewritten
from optimum_slim.deploy.wiring import Wiring, attribute_of
from optimum_slim.kernels.function import DOMAIN
from optimum_slim.kernels.norm import RMS_NORM, residual_norm_function, residual_norm_node, rms_norm_function


def fuse_residual_norms(graph: onnx.ModelProto) -> int:
    """Makes each Sum of two values of one shape, and the LayerNormalization that alone reads it, one SlimResidualNorm,
    in place; returns how many."""
    pairs = _sums_and_norms(graph)
    if not pairs:
        return 0
    seen = observed(graph, [name for add, _ in pairs for name in add.input])
    made = 0
    for add, norm in pairs:
        # Embeddings of positions, which are the same for all texts, are no residual.
        if any(run[add.input[0]].shape != run[add.input[1]].shape for run in seen):
            continue
        inputs, epsilon = [*add.input, *norm.input[1:]], attribute_of(norm, "epsilon", 1e-5)
        replace_node(graph, norm, residual_norm_node(inputs, norm.output[0], epsilon, norm.name))
        graph.graph.node.remove(add)
        made += 1
    if made:
        add_functions(graph, [residual_norm_function(opset_of(graph))])
    return made


def fuse_rms_norms(graph: onnx.ModelProto) -> int:
    """Makes each RMSNorm over the last axis, as the exporter writes torch's, one SlimRmsNorm, in place; returns how
    many."""
    weights = {one.name for one in graph.graph.initializer if len(one.dims) == 1}
    nodes = rewritten(graph, [_RmsNorm.rule(weights, first) for first in (True, False)])
    made = sum(node.op_type == RMS_NORM for node in nodes)
    if made:
        put_nodes(graph, nodes)
        add_functions(graph, [rms_norm_function(opset_of(graph))])
        drop_unused(graph)
    return made


class _RmsNorm(RewriteRuleClassBase):
    """x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich, arXiv:1910.07467); floats are cast to floats."""

    def __init__(self, weights: set[str], first: bool):
        # What is cast is read by the residual, too.
        super().__init__(remove_nodes=False)
        self.weights = weights
        self.first = first  # whether the product has the weight first

    def pattern(self, op: Any, x: Any, weight: Any, epsilon: Any) -> Any:
        mean = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
        root = op.Sqrt(op.Add(mean, epsilon))
        scaled = op.Mul(x, OrValue([op.Div(1.0, root), op.Reciprocal(root)]))
        scaled = OrValue([op.Cast(scaled, to=onnx.TensorProto.FLOAT), scaled])
        factors = (weight, scaled) if self.first else (scaled, weight)
        return op.Mul(*factors, _outputs=["output"])

    def check(self, op: Any, *args: Any, **found: Any) -> MatchResult:
        if found["weight"].name not in self.weights:
            return MatchResult().fail("the weight is computed, or has several dimensions")
        if len(numbers_in(found["epsilon"])) != 1:
            return MatchResult().fail("epsilon is computed")
        return MatchResult()

    def rewrite(self, op: Any, *args: Any, **found: Any) -> Any:
        (epsilon,) = numbers_in(found["epsilon"])
        name = found["output"].producer().name
        return op.SlimRmsNorm(found["x"], found["weight"], epsilon=epsilon, _domain=DOMAIN, _name=name)


def _sums_and_norms(graph: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    wiring, pairs = Wiring(graph), []
    for norm in [node for node in graph.graph.node if node.op_type == "LayerNormalization"]:
        whole = attribute_of(norm, "axis", -1) == -1 and len(norm.input) == 3 and len(norm.output) == 1
        add = wiring.made_by(norm.input[0], "Sum") if whole else None
        if add is not None and len(add.input) == 2:
            pairs.append((add, norm))
    return pairs

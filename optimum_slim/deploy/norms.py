"""The sum of a residual and the norm that reads it, as one node."""

from __future__ import annotations

import onnx

from optimum_slim.deploy.glue import observed
from optimum_slim.deploy.graph import add_functions, opset_of, replace_node
from optimum_slim.deploy.wiring import Wiring, attribute_of
from optimum_slim.kernels.norm import residual_norm_function, residual_norm_node


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


def _sums_and_norms(graph: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    wiring, pairs = Wiring(graph), []
    for norm in [node for node in graph.graph.node if node.op_type == "LayerNormalization"]:
        whole = attribute_of(norm, "axis", -1) == -1 and len(norm.input) == 3 and len(norm.output) == 1
        add = wiring.made_by(norm.input[0], "Sum") if whole else None
        if add is not None and len(add.input) == 2:
            pairs.append((add, norm))
    return pairs

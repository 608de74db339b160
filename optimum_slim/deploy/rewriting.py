"""What rules of onnxscript's rewriter share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

from optimum_slim.deploy.graph import opset_of


def rewritten(graph: onnx.ModelProto, rules: Sequence[RewriteRule], opset: int | None = None) -> list[onnx.NodeProto]:
    """The nodes after these rules, in order. Weights are inputs meanwhile, not copied.

    Args:
        opset: that the rules write; default: the graph's.
    """
    bare = onnx.ModelProto(ir_version=graph.ir_version, opset_import=graph.opset_import)
    bare.graph.node.extend(graph.graph.node)
    bare.graph.output.extend(graph.graph.output)
    bare.graph.input.extend(graph.graph.input)
    bare.graph.input.extend(onnx.ValueInfoProto(name=tensor.name) for tensor in graph.graph.initializer)
    model = ir.from_proto(bare)
    model.opset_imports[""] = opset or opset_of(graph)
    RewriteRuleSet(rules).apply_to_model(model)
    model.graph.sort()
    return list(ir.to_proto(model).graph.node)


def numbers_in(value: ir.Value | None) -> list[Any]:
    """What is stored in a small constant; nothing where it is computed."""
    stored = None if value is None else ir.convenience.get_const_tensor(value)
    return [] if stored is None else stored.numpy().ravel().tolist()

"""The residual that a linear's outputs are added to, or the gate that they are multiplied by, in the linear's node."""

from __future__ import annotations

import onnx

from optimum_slim.deploy.glue import observed
from optimum_slim.deploy.graph import add_functions, opset_of, replace_node
from optimum_slim.deploy.wiring import Wiring
from optimum_slim.kernels.blocked import BLOCKED_OPERATORS, OTHER_AT, blocked_function
from optimum_slim.kernels.function import DOMAIN, OPERATORS, slim_functions

ENDING_OF = {"Add": "Add", "Sum": "Add", "Mul": "Mul"}  # by the operator that it stands for


def fuse_meetings(graph: onnx.ModelProto) -> int:
    """Makes each SlimLinear or SlimMatMulNBits without an ending, and the Add, Sum or Mul of two tensors of one shape
    that alone reads it, one node, in place; returns how many."""
    found = _linears_and_readers(graph)
    if not found:
        return 0
    seen = observed(graph, [name for _, reader in found for name in reader.input])
    fused = list[str]()  # their operators
    for linear, reader in found:
        # A bias of each token, or a factor of each text, is no tensor of that shape.
        if any(run[reader.input[0]].shape != run[reader.input[1]].shape for run in seen):
            continue
        other = next(name for name in reader.input if name != linear.output[0])
        graph.graph.node.remove(linear)
        linear.op_type += ENDING_OF[reader.op_type]
        linear.output[0] = reader.output[0]
        linear.input.insert(OTHER_AT if linear.op_type in BLOCKED_OPERATORS else len(linear.input), other)
        replace_node(graph, reader, linear)
        fused.append(linear.op_type)
    blocked = set(fused) & set(BLOCKED_OPERATORS)
    add_functions(graph, [blocked_function(name, opset_of(graph)) for name in sorted(blocked)])
    add_functions(graph, slim_functions(set(fused) - blocked, opset_of(graph)))
    return len(fused)


def _linears_and_readers(graph: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    wiring, found, taken = Wiring(graph), list[tuple[onnx.NodeProto, onnx.NodeProto]](), set[str]()
    for node in graph.graph.node:
        if node.domain != DOMAIN or f"{node.op_type}Add" not in (*OPERATORS, *BLOCKED_OPERATORS):
            continue
        for reader in (one for name in ENDING_OF if (one := wiring.only_reader(node.output[0], name)) is not None):
            constant = any(wiring.tensor(name) is not None for name in reader.input)
            if len(reader.input) == 2 and not constant and reader.output[0] not in taken:
                found.append((node, reader))
                taken.add(reader.output[0])
    return found

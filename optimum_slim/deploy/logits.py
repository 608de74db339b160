"""A decoder's logits, of the last token alone: generation reads no others, and each costs as much as several layers."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from onnx import helper

from optimum_slim.deploy.graph import add_constant, add_initializer, replace_node
from optimum_slim.deploy.wiring import Wiring
from optimum_slim.kernels.session import LOGITS_FROM

Logits = Literal["last", "all"]


def last_logits(graph: onnx.ModelProto) -> bool:
    """Leaves the language model's head only the last token's hidden state, in place; returns whether it was found.

    A session with `read_all_logits` gives every token's again, as whoever computes perplexity wants them.
    """
    wiring = Wiring(graph)
    node = wiring.makers.get("logits")
    if node is not None and node.op_type == "Add":  # a bias
        node = next((wiring.makers[name] for name in node.input if name in wiring.makers), None)
    if node is None or node.op_type != "MatMul" or not any(one.name.startswith("past_") for one in graph.graph.input):
        return False
    hidden, path = node.input[0], node.name.rpartition("/")[0]
    made, end, axis = (f"{hidden}.{part}" for part in ("kept", "end", "axis"))
    add_initializer(graph, LOGITS_FROM, np.array([-1]))
    node.input[0] = made
    replace_node(
        graph, node, helper.make_node("Slice", [hidden, LOGITS_FROM, end, axis], [made], name=f"{path}/Slice"), node
    )
    add_constant(graph, end, np.array([np.iinfo(np.int64).max]))
    add_constant(graph, axis, np.array([1]))
    shape = next(value for value in graph.graph.output if value.name == "logits").type.tensor_type.shape
    shape.dim[1].dim_value = 1
    return True

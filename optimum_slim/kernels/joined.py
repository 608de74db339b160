"""Linears with one input as one node, which quantizes it once: queries, keys and values beside each other, or what an
activated gate lets through. Each keeps its initializers. The model-local functions call the linears one by one."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import helper
from onnx.onnx_pb import AttributeProto, FunctionProto, NodeProto

from optimum_slim.kernels.blocked import BLOCKED, BLOCKED_OPERATORS, ROUNDED, SIZES, STOCK, STOCK_DOMAIN
from optimum_slim.kernels.function import (
    ACTIVATIONS,
    ATTRIBUTES,
    DOMAIN,
    ENDING_BODIES,
    INPUTS,
    PLAIN,
    VERSION,
    Body,
    refer,
)

JOINED, GATED = "Joined", "Gated"
PARTS = {JOINED: 3, GATED: 2}  # linears of a node
LASTS = (JOINED, *(f"{activation}{GATED}" for activation in ACTIVATIONS))
BLOCKED_JOINED = tuple(f"{BLOCKED}{last}" for last in LASTS)
BLOCKED_LINEARS = (*BLOCKED_OPERATORS, *BLOCKED_JOINED)  # all that have weights in blocks
JOINED_OPERATORS = (*(f"{plain}{last}" for plain in PLAIN for last in LASTS), *BLOCKED_JOINED)
MULTIPLE = 16  # of which the outputs of each linear are one

BETWEEN = "|"  # the names of a node's linears, which are its name


def joined_node(linears: Sequence[NodeProto], output: str, activation: str = "") -> NodeProto:
    """A node of three linears whose outputs lie beside each other, or with an activation of the two of which the first
    is the gate.

    Args:
        linears: nodes of one of `PLAIN` or `BLOCKED`, alike but for N, a multiple of `MULTIPLE`.
    """
    plain, sizes = linears[0].op_type, {one.name: one for one in linears[0].attribute if one.name != "N"}
    outputs = [next(one.i for one in node.attribute if one.name == "N") for node in linears]
    counts = {f"N{i}": count for i, count in enumerate(outputs)}
    counts["N"] = outputs[0] if activation else sum(outputs)
    each = 2 if plain == BLOCKED else len(INPUTS) - 1
    inputs = [linears[0].input[0], *(name for node in linears for name in node.input[1 : 1 + each])]
    inputs += [name for node in linears for name in node.input[1 + each :]]
    op_type = f"{plain}{activation}{GATED if activation else JOINED}"
    node = helper.make_node(op_type, inputs, [output], name=BETWEEN.join(one.name for one in linears), domain=DOMAIN)
    node.attribute.extend([*sizes.values(), *(helper.make_attribute(*one) for one in counts.items())])
    return node


def parted(node: NodeProto) -> list[NodeProto]:
    """The linears of a node, as `joined_node` was given them, but with outputs of no name; any other node alone."""
    if node.op_type not in JOINED_OPERATORS:
        return [node]
    names, blocked = node.name.split(BETWEEN), node.op_type in BLOCKED_JOINED
    each, count = 2 if blocked else len(INPUTS) - 1, len(names)
    x, *inputs = node.input
    last = inputs[each * count :]
    counts = {f"N{i}" for i in range(count)} | {"N"}
    made = list[NodeProto]()
    for i, name in enumerate(names):
        own = [x, *inputs[each * i : each * (i + 1)], *last[i : i + 1]]
        made.append(helper.make_node(_plain(node.op_type)[0], own, [""], name=name, domain=DOMAIN))
        for attribute in node.attribute:
            if attribute.name not in counts:
                made[-1].attribute.append(attribute)
            elif attribute.name == f"N{i}":
                made[-1].attribute.append(helper.make_attribute("N", attribute.i))
    return made


def _plain(op_type: str) -> tuple[str, str]:
    """The operator of one linear, and the activation of its gate."""
    last = max((one for one in LASTS if op_type.endswith(one)), key=len)
    return op_type.removesuffix(last), last.removesuffix(JOINED).removesuffix(GATED)


def joined_function(op_type: str, opset: int = 21) -> FunctionProto:
    """The function of one of `JOINED_OPERATORS`, for a model of the ONNX opset `opset` with the plain linear's."""
    plain, activation = _plain(op_type)
    count = PARTS[GATED if activation else JOINED]
    blocked, body = plain == BLOCKED, Body()
    own, last_own = (["values", "scales"], ["zero_points"]) if blocked else (INPUTS[1:], [])
    attributes = dict.fromkeys(SIZES if blocked else ATTRIBUTES, AttributeProto.INT)
    if not blocked:
        attributes["pattern"] = AttributeProto.STRING
    if plain.endswith("Grouped"):
        attributes["group_size"] = AttributeProto.INT
    for i in range(count):
        inputs = ["x", *(f"{name}{i}" for name in (*own, *last_own))]
        output = "linear" if activation and i == 0 else f"linear{i}"
        node = helper.make_node(
            STOCK if blocked else plain, inputs, [output], domain=STOCK_DOMAIN if blocked else DOMAIN
        )
        refer(node, attributes, {"N": f"N{i}"})
        if blocked:
            node.attribute.append(helper.make_attribute("accuracy_level", ROUNDED))
        body.nodes.append(node)
    if activation:
        ENDING_BODIES[activation](body, "gate")
        body.add("Mul", "linear1", "gate", output="y")
    else:
        body.add("Concat", *(f"linear{i}" for i in range(count)), output="y", axis=-1)
    domains = {"": opset, DOMAIN: VERSION} | ({STOCK_DOMAIN: 1} if blocked else {})
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    names = ["x", *(f"{name}{i}" for i in range(count) for name in own)]
    names += [f"{name}{i}" for i in range(count) for name in last_own]
    told = [*attributes, *(f"N{i}" for i in range(count))]
    return helper.make_function(DOMAIN, op_type, names, ["y"], body.nodes, imports, told)

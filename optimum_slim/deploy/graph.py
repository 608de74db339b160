"""Small rewrites of an exported ONNX graph: same results, but stock ONNX Runtime runs or stores it better."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from optimum_slim.deploy.stored import array_of
from optimum_slim.deploy.wiring import attribute_of
from optimum_slim.kernels.function import DOMAIN, VERSION
from optimum_slim.kernels.packing import MIDDLE

AT_ONCE = 2**22  # weights: rounding takes several floats for each


def sum_residuals(graph: onnx.ModelProto) -> int:
    """Writes residual additions before a LayerNormalization as Sum, in place; returns how many.

    ONNX Runtime fuses Add and LayerNormalization into a SkipLayerNormalization whose CPU kernel is about ten times
    slower than the two apart. It does not look for Sum.
    """
    producers = {output: node for node in graph.graph.node for output in node.output}
    constant = _constants(graph)
    changed = 0
    for norm in graph.graph.node:
        if norm.op_type != "LayerNormalization":
            continue
        add = producers.get(norm.input[0])
        if add is not None and add.op_type == "Add" and not constant & set(add.input):
            add.op_type = "Sum"
            changed += 1
    return changed


def own_weights(graph: onnx.ModelProto) -> None:
    """Gives each node its own weight, in place: of weights with equal values the exporter stores one, which the others
    read through an Identity that hides it from quantizers."""
    initializers = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in list(graph.graph.node):
        if node.op_type == "Identity" and node.input[0] in initializers:
            add_initializer(graph, node.output[0], array_of(initializers[node.input[0]]))
            graph.graph.node.remove(node)


def fold_transposed_weights(graph: onnx.ModelProto) -> None:
    """Stores the transpose of a weight instead of computing it, in place: a language model's head that reads the
    embedding would else escape quantization."""
    initializers = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in list(graph.graph.node):
        if node.op_type == "Transpose" and node.input[0] in initializers:
            weight = array_of(initializers[node.input[0]])
            if weight.ndim != 2 or any(list(attribute.ints) == [0, 1] for attribute in node.attribute):
                continue
            add_initializer(graph, node.output[0], np.ascontiguousarray(weight.T))
            graph.graph.node.remove(node)


def tied_heads(graph: onnx.ModelProto) -> dict[str, str]:
    """Weights of MatMuls that are the transpose of an embedding, value by value: the embedding's name by theirs. The
    exporter writes such a weight twice."""
    initializers = {tensor.name: tensor for tensor in graph.graph.initializer}
    tables = {name: array_of(initializers[name]) for name in float_embeddings(graph)}
    tied = {}
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.input[1] in initializers:
            stored = initializers[node.input[1]]
            alike = [name for name, table in tables.items() if tuple(stored.dims) == table.T.shape]
            for name in alike:
                if np.array_equal(array_of(stored), tables[name].T):
                    tied[node.input[1]] = name
    return tied


def share_embeddings(graph: onnx.ModelProto, tied: dict[str, str]) -> None:
    """Lets heads read the transpose of their embedding, in place, so that the weight is in the file once. ONNX Runtime
    computes the transpose when it loads."""
    for head, embedding in tied.items():
        graph.graph.initializer.remove(initializer(graph, head))
        graph.graph.node.insert(0, helper.make_node("Transpose", [embedding], [head], perm=[1, 0]))


def quantize_embeddings(graph: onnx.ModelProto, tied: dict[str, str], high: Collection[str] = ()) -> None:
    """Stores embeddings as int8 with one scale per token, in place, but for those of `high`; a head that was
    quantized from the same weight (`tied`: embedding by head) reads the same integers, which may be uint8 and 128
    more."""
    heads = {embedding: head for head, embedding in tied.items()}
    for name, gathers in float_embeddings(graph).items():
        if name in high:
            continue
        integers, scales = f"{name}.integers", f"{name}.scale"
        stored = initializer(graph, f"{heads[name]}_quantized") if name in heads else None
        if stored is not None:
            quantized = array_of(stored).T
            scale = stored_array(graph, f"{heads[name]}_scale")[:, None]
            replace_input(graph, stored.name, f"{stored.name}.shared")
            graph.graph.node.insert(
                0, helper.make_node("Transpose", [integers], [f"{stored.name}.shared"], perm=[1, 0])
            )
            graph.graph.initializer.remove(stored)
        else:
            quantized, scale = quantized_rows(stored_array(graph, name))
        add_initializer(graph, integers, np.ascontiguousarray(quantized))
        add_initializer(graph, scales, np.ascontiguousarray(scale, dtype=np.float32))
        for gather in gathers:
            read_integers(graph, gather, integers, scales, MIDDLE if quantized.dtype == np.uint8 else 0)
        drop_unused(graph)


def read_integers(
    graph: onnx.ModelProto, gather: onnx.NodeProto, integers: str, scales: str, zero_point: int = 0, groups: int = 1
) -> None:
    """Makes a Gather of float rows, by ids [batch, tokens], one of integers and their scales, in place.

    Args:
        integers: [rows, width]. scales: [rows, groups]. zero_point: the integer that stands for 0.
    """
    ids, output = gather.input[1], gather.output[0]
    nodes: list[onnx.NodeProto] = []

    def add(op_type: str, *inputs: str, part: str, name: str = "", **attributes: Any) -> str:
        made = f"{output}.{part}" if part else output
        nodes.append(helper.make_node(op_type, inputs, [made], name=name, **attributes))
        return made

    def constant(part: str, value: np.ndarray) -> str:
        add_constant(graph, f"{output}.{part}", value)
        return f"{output}.{part}"

    value = add("Gather", integers, ids, part="rows", name=f"{gather.name}.rows")
    scale = add("Gather", scales, ids, part="scales", name=f"{gather.name}.scales")
    value = add("Cast", value, part="float", to=onnx.TensorProto.FLOAT)
    if zero_point:
        value = add("Sub", value, constant("zero_point", np.array(zero_point, np.float32)), part="centred")
    if groups > 1:
        value = add("Reshape", value, constant("grouping", np.array([0, 0, groups, -1])), part="groups")
        scale = add("Reshape", scale, constant("column", np.array([0, 0, groups, 1])), part="column_of_scales")
        value = add("Mul", value, scale, part="scaled")
        add("Reshape", value, constant("whole", np.array([0, 0, -1])), part="", name=f"{gather.name}.row")
    else:
        add("Mul", value, scale, part="")
    replace_node(graph, gather, *nodes)


def quantized_rows(
    weight: np.ndarray, group_size: int | None = None, spread: float = np.inf, paired: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 8-bit integers, -127 to 127 (Jacob et al., arXiv:1712.05877, with zero point 0).

    Args:
        weight: float32 [N, K]. group_size: inputs that share a scale; default: all K.
        spread: the most that the root mean square of a group's integers may be, zeros left out: where it would be more,
        the integers are smaller.
        paired: those of two neighbouring inputs that have one sign also add up to 128 at most, so that products with
        uint8 fit 16 bits (see saturation.py).

    Returns:
        int8 [N, K], and scales float32 [N, K / group_size]; a group of zeros has scale 1.
    """
    count = max(1, weight.size // AT_ONCE)
    made = [_quantized(rows, group_size, spread, paired) for rows in np.array_split(weight, count)]
    integers, scales = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return integers, scales


def _quantized(
    weight: np.ndarray, group_size: int | None, spread: float, paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs, -1, group_size or inputs)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    if paired:
        largest = np.maximum(largest, _largest_pairs(groups))
    step = largest / np.float32(127)
    if spread < np.inf:
        kept = np.maximum((groups != 0).sum(axis=2, keepdims=True), 1)
        rms = np.sqrt(np.square(groups, dtype=np.float64).sum(axis=2, keepdims=True) / kept)
        step = np.maximum(step, (rms / spread).astype(np.float32))
    scale = np.where(largest > 0, step, np.float32(1)).astype(np.float32)
    return np.rint(groups / scale).astype(np.int8).reshape(weight.shape), scale[..., 0]


def _largest_pairs(groups: np.ndarray) -> np.ndarray:
    """What neighbours of one sign add up to at most, [N, groups, 1]: each rounded, they exceed it by one step."""
    pairs = groups[..., : groups.shape[-1] // 2 * 2].reshape(*groups.shape[:2], -1, 2)
    sums = [np.maximum(side, 0).sum(-1).max(-1, keepdims=True, initial=0) for side in (pairs, -pairs)]
    return np.maximum(*sums)


def float_embeddings(graph: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The float tables [rows, width] of at least 4096 values that Gather reads rows of, with the nodes that do."""
    tables = {
        t.name
        for t in graph.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2 and t.dims[0] * t.dims[1] >= 4096
    }
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        if node.op_type == "Gather" and node.input[0] in tables and attribute_of(node, "axis", 0) == 0:
            found.setdefault(node.input[0], []).append(node)
    return found


def initializer(graph: onnx.ModelProto, name: str) -> onnx.TensorProto | None:
    return next((tensor for tensor in graph.graph.initializer if tensor.name == name), None)


def stored_array(graph: onnx.ModelProto, name: str) -> np.ndarray:
    """The values of an initializer that is there."""
    return next(array_of(tensor) for tensor in graph.graph.initializer if tensor.name == name)


def add_initializer(graph: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(value, name))


def add_constant(graph: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    """A small value that is no weight, as a node."""
    node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))
    graph.graph.node.insert(0, node)


def opset_of(graph: onnx.ModelProto) -> int:
    return next(one.version for one in graph.opset_import if one.domain in ("", "ai.onnx"))


def add_functions(graph: onnx.ModelProto, functions: Sequence[onnx.FunctionProto]) -> None:
    """Adds functions of ours that it has not yet, in place, and says which version of our domain is meant."""
    known = {function.name for function in graph.functions}
    graph.functions.extend(function for function in functions if function.name not in known)
    if DOMAIN not in {one.domain for one in graph.opset_import}:
        graph.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    graph.ir_version = max(graph.ir_version, 8)  # the first with functions


def inlined(node: onnx.NodeProto, function: onnx.FunctionProto) -> list[onnx.NodeProto]:
    """The nodes of a function in place of one that calls it. Values between have its name in theirs."""
    given = [*node.input, *[""] * (len(function.input) - len(node.input))]
    names = {"": "", **dict(zip(function.input, given, strict=True)), **dict(zip(function.output, node.output))}
    attributes = {one.name: one for one in node.attribute}
    nodes = list[onnx.NodeProto]()
    for one in function.node:
        made = onnx.NodeProto()
        made.CopyFrom(one)
        del made.attribute[:]
        for attribute in one.attribute:
            told = attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if told is not None:
                made.attribute.append(told)
                made.attribute[-1].name = attribute.name
        for values in (made.input, made.output):
            values[:] = [names.get(name, f"{node.name}/{name}") for name in values]
        while made.input and not made.input[-1]:
            made.input.pop()
        nodes.append(made)
    return nodes


def replace_input(graph: onnx.ModelProto, old: str, new: str) -> None:
    for node in graph.graph.node:
        for at, name in enumerate(node.input):
            if name == old:
                node.input[at] = new


def drop_dead_nodes(graph: onnx.ModelProto) -> None:
    """Removes nodes that lead to no output, in place."""
    used = {value.name for value in graph.graph.output}
    alive = []
    for node in reversed(graph.graph.node):
        if any(name in used for name in node.output):
            alive.append(node)
            used.update(node.input)
            used.update(name for a in node.attribute if a.HasField("g") for one in a.g.node for name in one.input)
    del graph.graph.node[:]
    graph.graph.node.extend(reversed(alive))


def drop_unused(graph: onnx.ModelProto) -> None:
    """Removes initializers that nothing reads, in place."""
    used = {name for node in graph.graph.node for name in node.input} | {value.name for value in graph.graph.output}
    for tensor in [tensor for tensor in graph.graph.initializer if tensor.name not in used]:
        graph.graph.initializer.remove(tensor)


def _constants(graph: onnx.ModelProto) -> set[str]:
    made = {output for node in graph.graph.node if node.op_type == "Constant" for output in node.output}
    return made | {tensor.name for tensor in graph.graph.initializer}


def replace_node(graph: onnx.ModelProto, old: onnx.NodeProto, *new: onnx.NodeProto) -> None:
    at = list(graph.graph.node).index(old)
    graph.graph.node.remove(old)
    for offset, node in enumerate(new):
        graph.graph.node.insert(at + offset, node)


def put_nodes(graph: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Makes these all of its nodes, in place."""
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)

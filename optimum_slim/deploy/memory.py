"""Runs a graph as it stands in memory, however large its weights are."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from optimum_slim.deploy.machine import session_options
from optimum_slim.deploy.stored import array_of, bare_copy, bytes_of
from optimum_slim.deploy.wiring import attribute_of
from optimum_slim.kernels.blocked import STOCK
from optimum_slim.kernels.joined import BLOCKED_LINEARS

SMALL = 1024  # bytes of an initializer that is told rather than lent
RANK = 4  # of what stands for a large matrix
LARGE = 2**16  # values of a matrix that something stands for


@contextlib.contextmanager
def opened(
    graph: onnx.ModelProto,
    outputs: Sequence[str] = (),
    alone: bool = False,
    options: onnxruntime.SessionOptions | None = None,
) -> Iterator[onnxruntime.InferenceSession]:
    """A session that reads the weights where they are: large ones fit no message of 2 GiB.

    Args:
        outputs: values to give besides the graph's own, or `alone`, so that nothing is computed but what they need.
        options: how to run it, to which the weights are added; default: on one thread, every node as it is written.
    """
    bare = bare_copy(graph)
    del bare.graph.value_info[:]  # what the exporter says of values that have changed since
    if alone:
        del bare.graph.output[:]
    told = {value.name for value in bare.graph.output}
    bare.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs) if name not in told)
    lent: dict[str, onnxruntime.OrtValue] = {}
    for tensor in graph.graph.initializer:
        if bytes_of(tensor) <= SMALL:
            bare.graph.initializer.append(numpy_helper.from_array(array_of(tensor), tensor.name))
            continue
        lent[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(array_of(tensor))
        outside = bare.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        outside.data_location = onnx.TensorProto.EXTERNAL
        outside.external_data.add(key="location", value="memory")
    options = options or _as_written()
    options.add_external_initializers(list(lent), list(lent.values()))
    yield onnxruntime.InferenceSession(bare.SerializeToString(), options)


def thinned(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which products of two thin matrices, drawn at random, stand for the large ones that values are
    multiplied with, integers too, or that rows are gathered from. What is computed has the sizes that it had and
    depends on the same inputs, for a fraction of the time and memory: enough for questions about the rest of a graph.
    """
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    kept = {value.name for value in graph.graph.output} | _read_whole(graph)
    known = {name: tensor for name, tensor in tensors.items() if name not in kept}
    copy, used = bare_copy(graph), set[str]()
    del copy.graph.node[:]
    for node in graph.graph.node:
        sizes = _sizes_of(node, known)
        nodes = [node] if sizes is None or np.prod(sizes) < LARGE else _thin(node, copy, *sizes)
        copy.graph.node.extend(nodes)
        used.update(name for one in nodes for name in one.input)
    copy.graph.initializer.extend(tensor for name, tensor in tensors.items() if name in used | kept)
    return copy


def _read_whole(graph: onnx.ModelProto) -> set[str]:
    """What subgraphs read."""
    attributes = [one for node in graph.graph.node for one in node.attribute if one.HasField("g")]
    return {name for attribute in attributes for node in attribute.g.node for name in node.input}


def _sizes_of(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> tuple[int, int] | None:
    """Inputs and outputs of a product with a stored matrix, or rows and width of a table; None of other nodes."""
    if node.op_type.startswith("SlimLinear") or node.op_type in (STOCK, *BLOCKED_LINEARS):
        return attribute_of(node, "K", 0), attribute_of(node, "N", 0)
    table = node.op_type == "Gather" and attribute_of(node, "axis", 0) == 0
    turned = attribute_of(node, "transA", 0) or attribute_of(node, "transB", 0)
    if not table and (node.op_type not in ("MatMul", "Gemm") or turned):
        return None
    matrix = stored.get(node.input[0 if table else 1])
    if matrix is None or matrix.data_type != onnx.TensorProto.FLOAT or len(matrix.dims) != 2:
        return None
    return matrix.dims[0], matrix.dims[1]


def _thin(node: onnx.NodeProto, copy: onnx.ModelProto, rows: int, columns: int) -> list[onnx.NodeProto]:
    """x W as (x L) R, and rows of W as rows of L, times R; L and R are added to the copy."""
    output = node.output[0]
    left, right, between = (f"{output}.{part}" for part in ("left", "right", "between"))
    draws = np.random.default_rng(zlib.crc32(output.encode()))
    # Outputs are as large as inputs, and rows of a table as ones: larger ones would leave softmax one key each.
    terms = {left: 1 if node.op_type == "Gather" else rows, right: RANK}
    for name, shape in ((left, (rows, RANK)), (right, (RANK, columns))):
        values = draws.standard_normal(shape, np.float32) / np.float32(np.sqrt(terms[name]))
        copy.graph.initializer.append(numpy_helper.from_array(values, name))
    if node.op_type == "Gather":
        first = helper.make_node("Gather", [left, node.input[1]], [between])
    else:
        first = helper.make_node("MatMul", [node.input[0], left], [between])
    if node.op_type == "Gemm":
        return [first, helper.make_node("Gemm", [between, right, *node.input[2:]], [output])]
    return [first, helper.make_node("MatMul", [between, right], [output])]


def _as_written() -> onnxruntime.SessionOptions:
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # each graph runs a few times, on a few tokens
    return options

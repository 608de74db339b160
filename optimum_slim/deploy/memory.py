"""Runs a graph as it stands in memory, however large its weights are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import onnx
import onnxruntime
from onnx import numpy_helper

from optimum_slim.deploy.machine import session_options

SMALL = 1024  # bytes of an initializer that is told rather than lent


@contextlib.contextmanager
def opened(graph: onnx.ModelProto, outputs: Sequence[str] = ()) -> Iterator[onnxruntime.InferenceSession]:
    """A session on one thread, which runs every node as it is written, and reads the weights where they are: large ones
    fit no message of 2 GiB.

    Args:
        outputs: values to give besides the graph's own.
    """
    bare = onnx.ModelProto(ir_version=graph.ir_version, opset_import=graph.opset_import, functions=graph.functions)
    bare.graph.name = graph.graph.name
    bare.graph.node.extend(graph.graph.node)
    bare.graph.input.extend(graph.graph.input)
    bare.graph.output.extend(graph.graph.output)
    told = {value.name for value in graph.graph.output}
    bare.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs) if name not in told)
    lent: dict[str, onnxruntime.OrtValue] = {}
    for tensor in graph.graph.initializer:
        if tensor.ByteSize() <= SMALL:
            bare.graph.initializer.append(tensor)
            continue
        lent[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(numpy_helper.to_array(tensor))
        outside = bare.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        outside.data_location = onnx.TensorProto.EXTERNAL
        outside.external_data.add(key="location", value="memory")
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # each graph runs a few times, on a few tokens
    options.add_external_initializers(list(lent), list(lent.values()))
    yield onnxruntime.InferenceSession(bare.SerializeToString(), options)

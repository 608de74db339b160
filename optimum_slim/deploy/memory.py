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
    bare = onnx.ModelProto(ir_version=graph.ir_version, opset_import=graph.opset_import, functions=graph.functions)
    bare.graph.name = graph.graph.name
    bare.graph.node.extend(graph.graph.node)
    bare.graph.input.extend(graph.graph.input)
    bare.graph.output.extend([] if alone else graph.graph.output)
    told = {value.name for value in bare.graph.output}
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
    options = options or _as_written()
    options.add_external_initializers(list(lent), list(lent.values()))
    yield onnxruntime.InferenceSession(bare.SerializeToString(), options)


def _as_written() -> onnxruntime.SessionOptions:
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # each graph runs a few times, on a few tokens
    return options

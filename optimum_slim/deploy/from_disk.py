"""The export of a model whose weights stay on the disk: the graph is traced without them, and each is then written into
the file beside it, so that one weight at a time is in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from transformers import PreTrainedModel

from optimum_slim.deploy.names import weight_of
from optimum_slim.deploy.stored import put
from optimum_slim.errors import ModelError
from optimum_slim.model.streamed import OnDisk, filled, parts_of

_INFER_SHAPES = "_jit_pass_onnx_graph_shape_type_inference"  # of torch's exporter, as of 2.13


@contextmanager
def without_weights(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a streamed model can be exported: the graph has its weights as inputs, in the order in which it would
    hold them."""
    names = [name for name, _ in model.named_parameters()]
    export, infer = torch.onnx.export, getattr(torch._C, _INFER_SHAPES, None)
    # The exporter keeps one of several equal weights, so each is filled with a number of its own; none takes memory.
    with filled(model, parts_of(model), lambda name, old: torch.full((), 1.0 + names.index(name)).expand(old.shape)):
        torch.onnx.export = functools.partial(export, export_params=False)  # Optimum has no setting for it
        if infer is not None:  # it would keep the transpose of each weight, though sizes are all that it asks for
            setattr(torch._C, _INFER_SHAPES, lambda graph, weights, opset: infer(graph, {}, opset))
        try:
            yield
        finally:
            torch.onnx.export = export
            if infer is not None:
                setattr(torch._C, _INFER_SHAPES, infer)


def write_weights(graph: onnx.ModelProto, model: PreTrainedModel, disk: OnDisk, data: Path) -> None:
    """Makes weights of those inputs of a graph, in place, that `without_weights` left, and writes their values into
    `data`; the graph is to be saved beside it.

    Raises:
        ModelError: an input is neither a weight of the model nor the transpose of one.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    readers = {name: node for node in reversed(graph.graph.node) for name in node.input}
    left = [value for value in graph.graph.input if value.name in named or value.name.startswith("onnx::")]
    with data.open("wb") as file:
        for value in left:
            name = value.name if value.name in named else weight_of(readers[value.name], named)
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            array = disk.read(own[id(named[name])]).float().numpy() if name is not None else np.empty(0)
            if name != value.name:  # the exporter has turned the weight of a linear, and called it by a number
                array = array.T
            if list(array.shape) != dims:
                raise ModelError(f"the model cannot be exported to ONNX: {value.name} is none of its weights")
            graph.graph.input.remove(value)
            put(graph, file, data.name, value.name, array)

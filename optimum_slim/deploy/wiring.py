"""Who makes and who reads each value of an ONNX graph: looked up once, for all who match patterns in it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from onnx import helper

from optimum_slim.deploy.stored import array_of


class Wiring:
    """A graph as it stands when this is made: whoever changes it looks anew."""

    def __init__(self, graph: onnx.ModelProto):
        self.stored = {tensor.name: tensor for tensor in graph.graph.initializer}
        self.makers = {output: node for node in graph.graph.node for output in node.output}
        self.outputs = {value.name for value in graph.graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)  # who reads a value twice stands there twice
        for node in graph.graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def read_once(self, name: str) -> bool:
        return len(self.readers.get(name, ())) + (name in self.outputs) == 1

    def made_by(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The node of this kind that makes a value for one reader alone."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == op_type and self.read_once(name) else None

    def only_reader(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """The node of this kind that alone reads a value."""
        readers = self.readers.get(name, [])
        return readers[0] if self.read_once(name) and readers and readers[0].op_type == op_type else None

    def tensor(self, name: str) -> onnx.TensorProto | None:
        """What is stored under a name, as an initializer or by a Constant."""
        node = self.makers.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return node.attribute[0].t
        return self.stored.get(name)

    def constant(self, name: str) -> np.ndarray | None:
        tensor = self.tensor(name)
        return None if tensor is None else array_of(tensor)


def attribute_of(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute of a node, or what holds where it is not written."""
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)

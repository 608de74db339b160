"""The weights of an ONNX graph, which may stand in a file beside it: read one at a time, and written so."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import helper, numpy_helper

from optimum_slim.errors import ModelError
from optimum_slim.files import wholly

EXTERNAL_DATA_BYTES = 2**31 - 2**20  # protobuf's limit of 2 GiB, less room for the graph itself
PAGE = 4096  # bytes: a weight in the file begins at a page, so that it can be mapped
INLINE = 1024  # bytes of a weight that stays in the graph


def read_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file; weights that stand beside it stay there, as long as nobody asks for their `array_of`.

    Raises:
        ModelError: a weight is said to stand outside the folder of the file, or beyond its end.
    """
    graph = onnx.load(path, load_external_data=False)
    folder = path.parent.resolve()
    for tensor in graph.graph.initializer:
        if not _is_outside(tensor):
            continue
        told = _told(tensor)
        file = (folder / told.get("location", "")).resolve()
        if folder not in file.parents or not file.is_file():
            raise ModelError(f"{path}: the weight {tensor.name} has no file in this folder")
        numbers = [told.get("offset") or "0", told.get("length") or str(bytes_of(tensor))]
        offset, length = (int(number) if number.isdecimal() else -1 for number in numbers)
        if length != bytes_of(tensor) or not 0 <= offset <= file.stat().st_size - length:
            raise ModelError(f"{path}: the weight {tensor.name} is not whole in {file.name}")
        _point(tensor, str(file), offset, length)
    return graph


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    """The values of a weight; those on the disk are mapped, and may not be written to."""
    if not _is_outside(tensor):
        return numpy_helper.to_array(tensor)
    told, shape = _told(tensor), tuple(tensor.dims)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if not bytes_of(tensor):
        return np.empty(shape, dtype)
    # A plain array: of a memmap each view would be one too, and pickled or compared as such.
    return np.asarray(np.memmap(told["location"], dtype, "r", int(told["offset"]), shape))


def bytes_of(tensor: onnx.TensorProto) -> int:
    """What a weight takes, wherever it stands."""
    if _is_outside(tensor):
        return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return len(tensor.raw_data)


def bring_in(graph: onnx.ModelProto, names: Collection[str] | None = None) -> None:
    """Takes weights from the disk into the graph, in place, for libraries that want them there; default: all."""
    for tensor in graph.graph.initializer:
        if _is_outside(tensor) and (names is None or tensor.name in names):
            tensor.CopyFrom(_inside(tensor))


def is_large(graph: onnx.ModelProto) -> bool:
    """Whether a graph is too large for one protobuf message."""
    return sum(map(bytes_of, graph.graph.initializer)) > EXTERNAL_DATA_BYTES


def save_onnx(graph: onnx.ModelProto, path: Path) -> None:
    """Writes an ONNX file, one weight after the other; over 2 GB they go into `<path>_data` beside it."""
    data = path.with_name(f"{path.name}_data")
    if not is_large(graph):
        _save_whole(graph, path)
        data.unlink(missing_ok=True)
        return
    bare = bare_copy(graph)

    def write(to: Path) -> None:
        with to.open("wb") as file:
            for tensor in graph.graph.initializer:
                put(bare, file, data.name, tensor.name, array_of(tensor))

    wholly(data, write)  # the weights may stand in `data`
    onnx.save(bare, path)


def _save_whole(graph: onnx.ModelProto, path: Path) -> None:
    """Writes one protobuf message whose weights are serialized one at a time: all at once take two copies more."""
    bare = bare_copy(graph)
    inner = bare.graph.SerializeToString(deterministic=True)
    bare.ClearField("graph")
    tensors = graph.graph.initializer
    tag = _tag(onnx.GraphProto, "initializer")
    length = len(inner) + sum(len(tag) + len(_varint(size := _inside(one).ByteSize())) + size for one in tensors)
    with path.open("wb") as file:
        file.write(bare.SerializeToString(deterministic=True))
        file.write(_tag(onnx.ModelProto, "graph") + _varint(length) + inner)
        for one in tensors:
            tensor = _inside(one).SerializeToString(deterministic=True)
            file.write(tag + _varint(len(tensor)))
            file.write(tensor)


def _tag(message: type[Message], name: str) -> bytes:
    """What stands before the length of a field that is a message, see protobuf.dev/programming-guides/encoding."""
    return _varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | 2)


def _varint(number: int) -> bytes:
    groups = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def _inside(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(array_of(tensor), tensor.name) if _is_outside(tensor) else tensor


def bare_copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that has none of its weights yet."""
    bare = onnx.ModelProto()
    _copy_fields(graph, bare, "graph")
    _copy_fields(graph.graph, bare.graph, "initializer")
    return bare


def put(graph: onnx.ModelProto, file: BinaryIO, location: str, name: str, array: np.ndarray) -> None:
    """Adds a weight to a graph, in place, and its values to the file that is to lie beside it as `location`; small ones
    stay inside."""
    array = np.asarray(array, order="C")
    if array.nbytes < INLINE:
        graph.graph.initializer.append(numpy_helper.from_array(array, name))
        return
    file.seek(-file.tell() % PAGE, 1)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = graph.graph.initializer.add(name=name, data_type=kind, dims=array.shape)
    _point(tensor, location, file.tell(), array.nbytes)
    array.tofile(file)


def _is_outside(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _told(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _copy_fields(message: Any, to: Any, but: str) -> None:
    for field, value in message.ListFields():
        if field.name == but:
            continue
        if hasattr(value, "extend"):
            getattr(to, field.name).extend(value)
        elif isinstance(value, Message):
            getattr(to, field.name).CopyFrom(value)
        else:
            setattr(to, field.name, value)

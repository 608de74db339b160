"""Feeds sessions mutated models and inputs; the library must answer each with a result or an error.

python -m tests.kernels.fuzz --count 20000 --seed 0      (under a library built with sanitizers, see test_fuzz.py)
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper
from onnx.onnx_pb import ModelProto, TensorProto

from optimum_slim.kernels.library import ISA_VARIABLE, register, supported_isas
from optimum_slim.kernels.pattern import PATTERNS
from tests.kernels.layers import random_layer, slim_model

INTS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 128, 65535, 65536, 65537, 1 << 24, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1)
TYPES = (np.uint8, np.int8, np.float32, np.int32, np.float16, np.float64, np.bool_)
ATTRIBUTES = ("K", "N", "pattern", "inputs", "outputs", "bits", "group_size")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    onnxruntime.set_default_logger_severity(4)
    outcomes = {"refused": 0, "failed": 0, "ran": 0}
    for turn in range(arguments.count):
        outcomes[one(random.Random(f"{arguments.seed}:{turn}"))] += 1  # noqa: S311
    print(outcomes)


def one(rng: random.Random) -> str:
    """One model: whether its session was refused, its run failed, or it ran."""
    model = valid_model(rng)
    for mutate in sorted(rng.choices(MUTATIONS, k=rng.choice((0, 1, 1, 1, 2, 3))), key=MUTATIONS.index):
        mutate(rng, model)
    content = model.SerializeToString()
    if rng.random() < 0.1:
        content = flipped(rng, content)
    os.environ[ISA_VARIABLE] = rng.choice(supported_isas())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    assert register(options)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception:
        return "refused"
    try:
        for _ in range(2):
            session.run(None, {"x": random_input(rng, model)})
    except Exception:
        return "failed"
    return "ran"


def valid_model(rng: random.Random) -> ModelProto:
    """A small layer; x and y of unknown shape, so that inputs of any shape reach the kernel."""
    pattern = rng.choice(list(PATTERNS))
    group_size = rng.choice((None, None, 4, 8, 20))
    k = rng.randint(1, 80) if group_size is None else group_size * rng.randint(1, 4)
    layer = random_layer(
        rng.randint(1, 70), k, pattern, rng.choice((0.0, 0.1, 0.5, 1.0)), group_size, rng.randrange(99)
    )
    model = slim_model(layer, rng.choice(("", "", "Relu", "Gelu", "GeluTanh", "Silu")), functions=False)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    return model


def random_input(rng: random.Random, model: ModelProto) -> np.ndarray:
    k = next((a.i for a in model.graph.node[0].attribute if a.name == "K"), 1)
    last = k if 0 < k < 100_000 and rng.random() < 0.8 else rng.randint(0, 100)
    shape = [rng.choice((0, 1, 1, 2, 3, 17, 45)) for _ in range(rng.choice((0, 1, 1, 1, 2)))] + [last]
    if rng.random() < 0.03:
        shape = []
    x = np.random.default_rng(rng.randrange(1 << 30)).standard_normal(shape, np.float32)
    if x.size and rng.random() < 0.2:
        x.reshape(-1)[rng.randrange(x.size)] = rng.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45))
    return x


def change_attribute(rng: random.Random, model: ModelProto) -> None:
    node = model.graph.node[0]
    name = rng.choice(ATTRIBUTES)
    others = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(others)
    value = rng.choice((rng.choice(INTS), -rng.choice(INTS), rng.choice(list(PATTERNS)), "x" * 100, 1.5, [1, 2], None))
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))


def change_tensor(rng: random.Random, model: ModelProto) -> None:
    """Another length, shape, type or content of an initializer, all consistent in themselves."""
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    array = numpy_helper.to_array(tensor).copy()
    kind = rng.randrange(5)
    if kind == 0:
        array = np.resize(array.reshape(-1), rng.choice((0, 1, array.size + 1, 2 * array.size, max(0, array.size - 1))))
    elif kind == 1 and array.size:
        array.reshape(-1).view(np.uint8)[rng.randrange(array.nbytes)] ^= 1 << rng.randrange(8)
    elif kind == 2:
        array = array.astype(rng.choice(TYPES))
    elif kind == 3:
        array = rng.choice((array[None], array.reshape(-1), array[..., None]))
    elif array.size:
        array = np.frombuffer(rng.randbytes(array.nbytes), array.dtype).reshape(array.shape)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def change_dims(rng: random.Random, model: ModelProto) -> None:
    """Dimensions that the data do not have."""
    tensor: TensorProto = rng.choice(model.graph.initializer)
    if tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((*INTS, -1))


def change_inputs(rng: random.Random, model: ModelProto) -> None:
    inputs = model.graph.node[0].input
    kind = rng.randrange(4)
    if kind == 0:
        inputs.pop()
    elif kind == 1:
        inputs.append(rng.choice(inputs))
    elif kind == 2:
        inputs[rng.randrange(len(inputs))] = ""
    else:
        inputs[rng.randrange(len(inputs))] = rng.choice(inputs)


def change_name(rng: random.Random, model: ModelProto) -> None:
    node = model.graph.node[0]
    grouped = "SlimLinearGrouped"
    node.op_type = rng.choice(("SlimLinear", grouped, "SlimLinearSilu", grouped + "Gelu", "SlimLinearTanh"))


MUTATIONS: tuple[Callable[[random.Random, ModelProto], None], ...] = (
    change_attribute,
    change_attribute,
    change_tensor,
    change_tensor,
    change_inputs,
    change_name,
    change_dims,  # last, for others read tensors
)


def flipped(rng: random.Random, content: bytes) -> bytes:
    """Some bytes of the file are others."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


if __name__ == "__main__":
    main()

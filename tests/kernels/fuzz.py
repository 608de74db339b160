"""Feeds sessions mutated models and inputs of every operator; the library must answer each with a result or an error.

python -m tests.kernels.fuzz --count 20000 --seed 0      (under a library built with sanitizers, see test_fuzz.py)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper
from onnx.onnx_pb import ModelProto, NodeProto, TensorProto, ValueInfoProto

from optimum_slim.kernels.attention import ATTENTION, PACKED_ATTENTION, ROTARY_ATTENTION
from optimum_slim.kernels.blocked import BLOCKED, BLOCKED_OPERATORS
from optimum_slim.kernels.function import ACTIVATIONS, ENDINGS, MEETINGS, OPERATORS, OTHER
from optimum_slim.kernels.joined import JOINED_OPERATORS
from optimum_slim.kernels.library import ISA_VARIABLE, register, supported_isas
from optimum_slim.kernels.norm import RESIDUAL_NORM, RMS_NORM
from optimum_slim.kernels.pattern import PATTERNS
from tests.kernels.blocks import random_blocks
from tests.kernels.floats import (
    LOWEST,
    attention_model,
    norm_model,
    packed_attention_model,
    rms_norm_model,
    rotary_attention_model,
)
from tests.kernels.layers import joined_model, random_layer, slim_model

INTS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 128, 65535, 65536, 65537, 1 << 24, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1)
SIZES = (0, 0, 1, 2, 3, 5, 8, 16, 17, 33, 64, 100, 1 << 30)
HUGE = (1 << 30, 1 << 31, 1 << 32, 1 << 40, 1 << 62)
MOST_VALUES = 1 << 21  # of an input
FLOATS = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45)
TYPES = (np.uint8, np.int8, np.float32, np.int32, np.float16, np.float64, np.bool_)
ATTRIBUTES = (
    "K",
    "N",
    "pattern",
    "inputs",
    "outputs",
    "bits",
    "group_size",
    "heads",
    "epsilon",
    "kv_num_heads",
    "N0",
    "N1",
    "N2",
    "scale",
)
OUTCOMES = ("refused", "failed", "ran")


@dataclass
class Case:
    """A model, and the shapes of what it is fed: each axis has the name of its size."""

    model: ModelProto
    sizes: dict[str, int]
    axes: dict[str, list[str]]

    @property
    def node(self) -> NodeProto:
        return self.model.graph.node[0]

    def shape(self, name: str) -> list[int]:
        """That of an input; small where it would not fit into memory, or where numpy counts more than it can."""
        sizes = [self.sizes[axis] for axis in self.axes[name]]
        fits = math.prod(sizes) <= MOST_VALUES and math.prod(size for size in sizes if size) < 1 << 59
        return sizes if fits else [min(size, 3) for size in sizes]

    def array(self, rng: random.Random, name: str) -> np.ndarray:
        """Content for an input, or for an initializer in its place."""
        draw = np.random.default_rng(rng.randrange(1 << 30))
        array = draw.standard_normal(self.shape(name), np.float32)
        if name == "mask":
            array = np.where(draw.random(array.shape) < 0.5, np.float32(rng.choice((LOWEST, -np.inf))), np.float32(0))
        if array.size and rng.random() < 0.2:
            array.reshape(-1)[rng.randrange(array.size)] = rng.choice(FLOATS)
        return array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="of the models, the first to try")
    arguments = parser.parse_args()
    onnxruntime.set_default_logger_severity(4)
    outcomes = {name: dict.fromkeys(OUTCOMES, 0) for name in VALID}
    for turn in range(arguments.start, arguments.count):
        if turn % 1000 == 0:
            print(f"from {turn} on", file=sys.stderr, flush=True)  # where to look for a crash
        name = list(VALID)[turn % len(VALID)]
        outcomes[name][one(random.Random(f"{arguments.seed}:{turn}"), name)] += 1  # noqa: S311
    print(json.dumps(outcomes))


def one(rng: random.Random, name: str) -> str:
    """One model of this operator: whether its session was refused, its run failed, or it ran."""
    case = VALID[name](rng)
    for value in [*case.model.graph.input, *case.model.graph.output]:  # so that inputs of any shape reach the kernel
        value.type.tensor_type.ClearField("shape")
    for value in [value for value in case.model.graph.input if rng.random() < 0.2]:
        store(rng, case, value)
    order, weights = list(MUTATIONS), list(MUTATIONS.values())
    mutations = sorted(rng.choices(order, weights, k=rng.choice((0, 1, 1, 1, 2, 3))), key=order.index)
    for mutate in mutations:
        mutate(rng, case)
    content = case.model.SerializeToString()
    flips = rng.random() < 0.1
    outcome = answer(rng, case, flipped(rng, content) if flips else content)
    if not mutations and not flips and outcome != "ran":
        raise AssertionError(f"a valid {name} was {outcome}")
    return outcome


def answer(rng: random.Random, case: Case, content: bytes) -> str:
    os.environ[ISA_VARIABLE] = rng.choice(supported_isas())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = rng.choice((1, 1, 1, 2))
    options.log_severity_level = 4
    assert register(options)
    try:
        session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], enable_fallback=False
        )
    except Exception:
        return "refused"
    for _ in range(2):
        feeds = {value.name: fed(rng, case, value) for value in case.model.graph.input}
        try:
            session.run(None, feeds)
        except Exception:
            return "failed"
    return "ran"


def fed(rng: random.Random, case: Case, value: ValueInfoProto) -> np.ndarray:
    """Content for an input, of the type that the model wants."""
    array = case.array(rng, value.name)
    with np.errstate(all="ignore"):
        return array.astype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type or TensorProto.FLOAT))


def store(rng: random.Random, case: Case, value: ValueInfoProto) -> None:
    """Makes an input an initializer."""
    case.model.graph.initializer.append(numpy_helper.from_array(fed(rng, case, value), value.name))
    case.model.graph.input.remove(value)


def linear(rng: random.Random) -> Case:
    pattern = rng.choice(list(PATTERNS))
    group_size = rng.choice((None, None, 4, 8, 20))
    k = rng.randint(1, 80) if group_size is None else group_size * rng.randint(1, 4)
    layer = random_layer(
        rng.randint(1, 70), k, pattern, rng.choice((0.0, 0.1, 0.5, 1.0)), group_size, rng.randrange(99)
    )
    return _product(rng, slim_model(layer, rng.choice(ENDINGS), functions=False))


def blocked(rng: random.Random) -> Case:
    bits, block = rng.choice((4, 4, 8)), rng.choice((16, 32, 64))
    k, asymmetric = block * rng.randint(1, 4), bits == 4 and rng.random() < 0.5
    layer = random_blocks(rng.randint(1, 70), k, bits, block, asymmetric, rng.randrange(99))
    return _product(rng, layer.model(functions=False, meeting=rng.choice(("", "", *MEETINGS))))


def _product(rng: random.Random, model: ModelProto) -> Case:
    """Of a layer's model, with what its node meets."""
    leading = ["batch", "rows"][: rng.choice((0, 1, 1, 1, 2))]
    sizes = {name: rng.choice((0, 1, 1, 2, 3, 17, 45)) for name in leading}
    sizes |= {one.name: one.i for one in model.graph.node[0].attribute if one.name in ("K", "N")}
    axes = {"x": [*leading, "K"]} | ({OTHER: [*leading, "N"]} if OTHER in model.graph.node[0].input else {})
    return Case(model, sizes, axes)


def joined(rng: random.Random) -> Case:
    activation = rng.choice(("", *ACTIVATIONS))
    outputs = [16 * rng.randint(1, 3)] * 2 if activation else [16 * rng.randint(1, 3) for _ in range(3)]
    seeds = [rng.randrange(99) for _ in outputs]
    if rng.random() < 0.5:
        bits, k = rng.choice((4, 8)), 32 * rng.randint(1, 3)
        asymmetric = bits == 4 and rng.random() < 0.5
        models = [
            random_blocks(n, k, bits, 32, asymmetric, seed).model(functions=False)
            for n, seed in zip(outputs, seeds, strict=True)
        ]
    else:
        pattern, group_size = rng.choice(list(PATTERNS)), rng.choice((None, None, 8))
        k, density = 8 * rng.randint(1, 9), rng.choice((0.0, 0.1, 0.5, 1.0))
        layers = [
            random_layer(n, k, pattern, density, group_size, seed) for n, seed in zip(outputs, seeds, strict=True)
        ]
        models = [slim_model(one, functions=False) for one in layers]
    return _product(rng, joined_model(models, activation, functions=False))


def attention(rng: random.Random) -> Case:
    heads, size, most = rng.choice((1, 1, 2, 3, 12)), rng.randint(1, 40), 40
    kind = rng.random()
    if kind < 0.02:  # as many heads as there may be
        heads, size, most = 65536, 1, 3
    elif kind < 0.05:  # enough work to be split
        heads, size, most = 12, 32, 160
    sizes = {"batch": rng.randint(1, 3), "queries": rng.randint(1, most), "keys": rng.randint(1, most), "1": 1}
    sizes |= {"heads": heads, "width": heads * size}
    if rng.random() < 0.1:
        sizes[rng.choice(("batch", "queries", "width"))] = 0
    keys = ["batch", "keys", "width"]
    axes = {"query": ["batch", "queries", "width"], "key": keys, "value": list(keys)}
    axes["mask"] = [rng.choice((name, "1")) for name in ("batch", "heads", "queries")] + ["keys"]
    return Case(_without_functions(attention_model(heads)), sizes, axes)


def rotary_attention(rng: random.Random) -> Case:
    kv_heads, shared, size = rng.choice((1, 2, 3)), rng.choice((1, 1, 2, 3)), 2 * rng.randint(1, 20)
    sizes = {"batch": rng.randint(1, 3), "tokens": rng.choice((1, 2, 3, 5, 40)), "past": rng.choice((0, 1, 7, 40))}
    if rng.random() < 0.05:  # enough work to be split
        sizes |= {"batch": 2, "tokens": 160}
    if rng.random() < 0.1:
        sizes[rng.choice(("batch", "tokens"))] = 0
    sizes["queries"] = rng.choice((sizes["tokens"], sizes["tokens"], rng.randint(0, 50)))
    if not sizes["past"] + sizes["tokens"]:
        sizes["queries"] = 0  # there is nothing to see
    sizes |= {"1": 1, "size": size, "half": size // 2, "heads": kv_heads * shared, "kv_heads": kv_heads}
    sizes |= {"width": kv_heads * shared * size, "kv_width": kv_heads * size, "keys": sizes["past"] + sizes["tokens"]}
    new, past = ["batch", "tokens", "kv_width"], ["batch", "kv_heads", "past", "size"]
    axes = {"query": ["batch", "queries", "width"], "key": new, "value": list(new)}
    axes["mask"] = [rng.choice((name, "1")) for name in ("batch", "heads", "queries")] + ["keys"]
    axes |= {"past_key": past, "past_value": list(past)}
    for name, tokens in (("query", "queries"), ("key", "tokens")):
        axes |= {f"{name}_{part}": ["batch", tokens, "half"] for part in ("cos", "sin")}
    model = rotary_attention_model(kv_heads * shared, kv_heads, rng.choice((0.25, 0.0, -1.0, 3e38)))
    return Case(_without_functions(model), sizes, axes)


def packed_attention(rng: random.Random) -> Case:
    case = rotary_attention(rng)
    sizes, axes = case.sizes, case.axes
    if sizes["keys"]:
        sizes["queries"] = sizes["tokens"]
    sizes["packed"] = sizes["width"] + 2 * sizes["kv_width"]
    axes = {"packed": ["batch", "tokens", "packed"]} | {name: axes[name] for name in ("mask", "past_key", "past_value")}
    axes |= {name: ["batch", "tokens", "half"] for name in ("cos", "sin")}
    axes["mask"] = ["tokens" if axis == "queries" else axis for axis in axes["mask"]]
    model = packed_attention_model(sizes["heads"], sizes["kv_heads"], rng.choice((0.25, 0.0, -1.0, 3e38)))
    return Case(_without_functions(model), sizes, axes)


def norm(rng: random.Random) -> Case:
    leading = ["batch", "tokens", "more"][: rng.choice((0, 1, 2, 2, 3))]
    sizes = {name: rng.choice((0, 1, 1, 2, 3, 17)) for name in leading} | {"width": rng.choice((0, 1, 5, 16, 33, 384))}
    if "tokens" in leading and rng.random() < 0.05:  # enough work to be split
        sizes |= {"batch": 2, "tokens": 530} | ({"more": 1} if "more" in sizes else {})
    rows = [*leading, "width"]
    axes = {"a": rows, "b": list(rows), "weight": ["width"], "bias": ["width"]}
    return Case(_without_functions(norm_model(rng.choice((0.0, 1e-12, 1e-5, 3e38)))), sizes, axes)


def rms_norm(rng: random.Random) -> Case:
    case = norm(rng)
    axes = {"x": case.axes["a"], "weight": case.axes["weight"]}
    return Case(_without_functions(rms_norm_model(rng.choice((0.0, 1e-12, 1e-5, 3e38)))), case.sizes, axes)


def _without_functions(model: ModelProto) -> ModelProto:
    """Only our library can answer then."""
    del model.functions[:]
    return model


VALID: dict[str, Callable[[random.Random], Case]] = {
    "SlimLinear": linear,
    BLOCKED: blocked,
    ATTENTION: attention,
    ROTARY_ATTENTION: rotary_attention,
    PACKED_ATTENTION: packed_attention,
    "joined linears": joined,
    RESIDUAL_NORM: norm,
    RMS_NORM: rms_norm,
}


def change_attribute(rng: random.Random, case: Case) -> None:
    name = rng.choice([attribute.name for attribute in case.node.attribute] or ATTRIBUTES)
    if rng.random() < 0.1:
        name = rng.choice(ATTRIBUTES)
    others = [attribute for attribute in case.node.attribute if attribute.name != name]
    del case.node.attribute[:]
    case.node.attribute.extend(others)
    numbers = (rng.choice(INTS), -rng.choice(INTS), 1.5, rng.choice(FLOATS))
    value = rng.choice((*numbers, *numbers, rng.choice(list(PATTERNS)), "x" * 100, [1, 2], None))
    if value is not None:
        case.node.attribute.append(helper.make_attribute(name, value))
    if name in case.sizes and isinstance(value, int) and 0 < value < 100_000:
        case.sizes[name] = value  # fits, as far as possible


def change_tensor(rng: random.Random, case: Case) -> None:
    """Another length, shape, type or content of an initializer, all consistent in themselves."""
    if not case.model.graph.initializer:
        return
    tensor = rng.choice(case.model.graph.initializer)
    array = numpy_helper.to_array(tensor).copy()
    kind = rng.randrange(5)
    if kind == 0:
        array = np.resize(array.reshape(-1), rng.choice((0, 1, array.size + 1, 2 * array.size, max(0, array.size - 1))))
    elif kind == 1 and array.size:
        array.reshape(-1).view(np.uint8)[rng.randrange(array.nbytes)] ^= 1 << rng.randrange(8)
    elif kind == 2:
        with np.errstate(all="ignore"):
            array = array.astype(rng.choice(TYPES))
    elif kind == 3:
        array = rng.choice((array[None], array.reshape(-1), array[..., None]))
    elif array.size:
        array = np.frombuffer(rng.randbytes(array.nbytes), array.dtype).reshape(array.shape)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def change_dims(rng: random.Random, case: Case) -> None:
    """Dimensions that the data do not have, or that have no data and overflow when multiplied."""
    if not case.model.graph.initializer:
        return
    tensor: TensorProto = rng.choice(case.model.graph.initializer)
    if rng.random() < 0.3:
        dims = [0, *(rng.choice(HUGE) for _ in tensor.dims[1:])]
        tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=dims, raw_data=b""))
    elif tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((*INTS, -1))


def change_size(rng: random.Random, case: Case) -> None:
    """Of all inputs that share it."""
    case.sizes[rng.choice(list(case.sizes))] = rng.choice(SIZES)


def change_axes(rng: random.Random, case: Case) -> None:
    """One more, one less, or another, for one input alone."""
    axes = rng.choice(list(case.axes.values()))
    kind = rng.randrange(4)
    if kind == 0 and axes:
        axes.pop(rng.randrange(len(axes)))
    elif kind == 1:
        axes.insert(rng.randint(0, len(axes)), rng.choice(list(case.sizes)))
    elif kind == 2:
        axes.clear()
    elif axes:
        case.sizes["other"] = rng.choice(SIZES)
        axes[rng.randrange(len(axes))] = "other"


def change_declaration(rng: random.Random, case: Case) -> None:
    """What the graph says of an input or of the output: its type, or a shape that the node cannot have."""
    value = rng.choice([*case.model.graph.input, *case.model.graph.output])
    kind = rng.randrange(4)
    if kind == 0:
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(rng.choice(TYPES)))
    elif kind == 1:
        value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    else:
        dims = [rng.choice((*INTS, -1, "name", None)) for _ in range(rng.randint(0, 5))]
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, dims))


def change_inputs(rng: random.Random, case: Case) -> None:
    inputs = case.node.input
    kind = rng.randrange(4)
    if kind == 0:
        inputs.pop()
    elif kind == 1:
        inputs.append(rng.choice(inputs))
    elif kind == 2:
        inputs[rng.randrange(len(inputs))] = ""
    else:
        inputs[rng.randrange(len(inputs))] = rng.choice(inputs)


def change_outputs(rng: random.Random, case: Case) -> None:
    case.node.output.append(rng.choice(("", "z")))


def change_name(rng: random.Random, case: Case) -> None:
    others = (ATTENTION, ROTARY_ATTENTION, PACKED_ATTENTION, RESIDUAL_NORM, RMS_NORM, "SlimLinearTanh")
    case.node.op_type = rng.choice((*OPERATORS, *BLOCKED_OPERATORS, *JOINED_OPERATORS, *others))


def store_nothing(rng: random.Random, case: Case) -> None:
    """Initializers for all inputs: they fit together, have no values, and sizes that overflow when multiplied."""
    fixed = {"batch": 0} | {axis: size for axis, size in case.sizes.items() if axis in ("1", "heads", "width", "K")}
    sizes = {axis: fixed.get(axis, rng.choice(HUGE)) for axis in case.sizes}
    for value in list(case.model.graph.input):
        dims = [sizes[axis] for axis in case.axes[value.name]]
        if 0 in dims:
            case.model.graph.initializer.append(
                TensorProto(name=value.name, data_type=TensorProto.FLOAT, dims=dims, raw_data=b"")
            )
            case.model.graph.input.remove(value)


# How often each is drawn: what reaches our library more often than what ONNX Runtime refuses itself.
MUTATIONS: dict[Callable[[random.Random, Case], None], int] = {
    change_attribute: 4,
    change_tensor: 4,
    change_size: 3,
    change_axes: 3,
    change_declaration: 1,
    change_inputs: 1,
    change_outputs: 1,
    change_name: 1,
    # Last, for others read tensors.
    store_nothing: 1,
    change_dims: 2,
}


def flipped(rng: random.Random, content: bytes) -> bytes:
    """Some bytes of the file are others."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


if __name__ == "__main__":
    main()

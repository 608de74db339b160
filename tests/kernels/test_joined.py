"""Linears with one input, as one node, compute what they compute one by one, to the bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from optimum_slim.kernels.blocked import BLOCKED
from optimum_slim.kernels.function import ACTIVATIONS
from optimum_slim.kernels.joined import JOINED_OPERATORS, PARTS, joined_function, parted
from optimum_slim.kernels.pattern import PATTERNS
from tests.kernels.blocks import random_blocks
from tests.kernels.layers import joined_model, random_layer, random_rows, session, slim_model
from tests.kernels.test_numbers import each_isa  # noqa: F401

ROWS = (1, 3, 20, 100, 600)  # few, masked, many, and more than are quantized at once


def linears(pattern: str, outputs, k: int, group_size: int | None = None, density: float = 0.4):
    return [
        slim_model(random_layer(n, k, pattern, density, group_size, seed=i), functions=False)
        for i, n in enumerate(outputs)
    ]


def blocks(outputs, bits: int, asymmetric: bool):
    return [random_blocks(n, 64, bits, 32, asymmetric, seed=i).model(functions=False) for i, n in enumerate(outputs)]


def one_by_one(models, x: np.ndarray, activation: str) -> np.ndarray:
    """By the same kernels."""
    models = [onnx.ModelProto.FromString(one.SerializeToString()) for one in models]
    plain = models[0].graph.node[0].op_type
    if activation and plain != BLOCKED:
        models[0].graph.node[0].op_type += activation
    parts = [session(one).run(None, {"x": x})[0] for one in models]
    if not activation:
        return np.concatenate(parts, -1)
    if plain == BLOCKED:
        with np.errstate(over="ignore"):
            parts[0] = parts[0] / (1 + np.exp(-parts[0]))
    return parts[0] * parts[1]


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("group_size", [None, 12])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("activation", "outputs"), [("", (80, 16, 32)), ("Silu", (48, 48)), ("Relu", (16, 16))])
def test_linears_of_one_node_have_every_bit_of_their_own(pattern, group_size, threads, activation, outputs):
    models = linears(pattern, outputs, 60, group_size)
    together = session(joined_model(models, activation, functions=False), threads=threads)
    for rows in ROWS:
        x = random_rows(rows, 60)
        np.testing.assert_array_equal(together.run(None, {"x": x})[0], one_by_one(models, x, activation))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("density", [0.05, 1.0])
def test_sparse_and_full_ones_too(density):
    for pattern in ("4x4", "unstructured"):
        models = linears(pattern, (128, 128), 512, density=density)
        together = session(joined_model(models, "GeluTanh", functions=False), threads=2)
        for rows in (1, 130):
            x = random_rows(rows, 512)
            np.testing.assert_array_equal(together.run(None, {"x": x})[0], one_by_one(models, x, "GeluTanh"))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize(("bits", "asymmetric"), [(4, False), (4, True), (8, False)])
@pytest.mark.parametrize(("activation", "outputs"), [("", (80, 16, 32)), ("Silu", (48, 48))])
def test_weights_in_blocks_too(bits, asymmetric, activation, outputs):
    models = blocks(outputs, bits, asymmetric)
    together = session(joined_model(models, activation, functions=False), threads=2)
    for rows in ROWS:
        x = random_rows(rows, 64)
        found, wanted = together.run(None, {"x": x})[0], one_by_one(models, x, activation)
        if activation:
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
        else:
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("activation", ["", *ACTIVATIONS])
@pytest.mark.parametrize("stored", ["dense", "4x1", "unstructured", "grouped", "blocks", "asymmetric blocks"])
def test_a_session_without_our_library_computes_the_same(stored, activation):
    outputs = (32, 32) if activation else (48, 16, 32)
    if "blocks" in stored:
        models, k = blocks(outputs, 4, stored.startswith("asymmetric")), 64
    else:
        pattern = "4x2" if stored == "grouped" else stored
        models, k = linears(pattern, outputs, 24, 8 if stored == "grouped" else None), 24
    model = joined_model(models, activation)
    onnx.checker.check_model(model, full_check=True)
    for rows in (1, 7):
        x = random_rows(rows, k)
        stock, ours = (session(model, registered).run(None, {"x": x})[0] for registered in (False, True))
        if stored in ("dense", "4x1", "unstructured") and not activation:
            np.testing.assert_array_equal(ours, stock)
        tolerance = 1e-4 if "blocks" in stored else 1e-5  # ONNX Runtime rounds other floats in its blocks
        np.testing.assert_allclose(ours, stock, rtol=tolerance, atol=tolerance * np.abs(stock).max())


def test_every_operator_has_a_kernel():
    found = set()
    for activation in ("", *ACTIVATIONS):
        outputs = (16, 16) if activation else (16, 16, 16)
        for pattern in ("dense", "4x1", "unstructured"):
            for group_size in (None, 8):
                models = linears(pattern, outputs, 24, group_size)
                model = joined_model(models, activation, functions=False)
                session(model)
                found.add(model.graph.node[0].op_type)
        model = joined_model(blocks(outputs, 4, False), activation, functions=False)
        session(model)
        found.add(model.graph.node[0].op_type)
    assert found == set(JOINED_OPERATORS)


def test_every_operator_has_a_function_that_names_its_linears():
    for op_type in JOINED_OPERATORS:
        function = joined_function(op_type)
        count = PARTS["Joined" if op_type.endswith("Joined") else "Gated"]
        assert len([name for name in function.input if name.startswith("values")]) == count
        assert [f"N{i}" for i in range(count)] == [name for name in function.attribute if name[1:].isdigit()]


@pytest.mark.parametrize("models", [linears("dense", (32, 16, 48), 24), blocks((32, 16, 48), 4, True)])
def test_what_is_parted_again_are_the_linears(models):
    model = joined_model(models, "")
    for i, (found, one) in enumerate(zip(parted(model.graph.node[0]), models, strict=True)):
        (wanted,) = one.graph.node
        assert (found.op_type, found.name) == (wanted.op_type, f"linear {i}")
        assert list(found.input) == ["x", *(f"{name}{i}" for name in wanted.input[1:])]
        told, right = ({a.name: helper.get_attribute_value(a) for a in n.attribute} for n in (found, wanted))
        assert told == right


def changed(model, **attributes):
    node = model.graph.node[0]
    kept = [one for one in node.attribute if one.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(*one) for one in attributes.items())])
    return model


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"N": 64}, "attribute N is 64, expected 96"),
        ({"N1": 24}, "attribute N1 is 24, expected a multiple of 16"),
        ({"N1": 32}, "the shape of input scale1 is"),
        ({"N2": 0}, "attribute N2 is 0"),
        ({"pattern": "4x1"}, "attribute pattern is '4x1'"),
        ({"K": 25}, "the shape of input values0 is"),
    ],
)
def test_linears_that_do_not_fit_are_an_error(attributes, told):
    model = changed(joined_model(linears("dense", (32, 16, 48), 24), "", functions=False), **attributes)
    with pytest.raises(Exception, match=f"SlimLinearJoined: {told}"):
        session(model)


def test_a_gate_of_another_size_is_an_error():
    model = joined_model(linears("dense", (32, 16), 24), "Silu", functions=False)
    with pytest.raises(Exception, match="SlimLinearSiluGated: attribute N1 is 16, expected 32, as N0"):
        session(model)


@pytest.mark.parametrize("kept", [1, 5, 8, 10, 12])
def test_inputs_that_are_missing_are_an_error(kept):
    model = joined_model(linears("dense", (32, 16, 48), 24), "", functions=False)
    del model.graph.node[0].input[kept:]
    with pytest.raises(Exception, match=r"SlimLinearJoined|input"):
        session(model)


def test_a_broken_linear_is_named():
    models = linears("4x1", (16, 32, 16), 24)
    model = joined_model(models, "", functions=False)
    gaps = next(one for one in model.graph.initializer if one.name == "gaps2")
    gaps.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(gaps)[:-1].copy(), "gaps2"))
    with pytest.raises(Exception, match="input gaps2"):
        session(model)

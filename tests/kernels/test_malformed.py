"""A node that breaks FORMAT.md is an error that names what is wrong, never a crash."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.kernels.layers import random_layer, random_rows, session, slim_model


def attribute(name, value):
    def change(model):
        node = model.graph.node[0]
        kept = [one for one in node.attribute if one.name != name]
        del node.attribute[:]
        node.attribute.extend(kept if value is None else [*kept, helper.make_attribute(name, value)])

    return change


def tensor(name, change):
    def apply(model):
        one = next(one for one in model.graph.initializer if one.name == name)
        one.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(one).copy()), name))

    return apply


def fed_from_outside(name):
    def change(model):
        one = next(one for one in model.graph.initializer if one.name == name)
        model.graph.input.append(helper.make_tensor_value_info(name, one.data_type, list(one.dims)))
        model.graph.initializer.remove(one)

    return change


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


# The layer is 4x2, 10 outputs x 18 inputs: a grid of 5 x 5 blocks.
MALFORMED = {
    "no K": (attribute("K", None), "attribute K"),
    "K 0": (attribute("K", 0), "attribute K is 0, expected 1 to 65536"),
    "K negative": (attribute("K", -4), "attribute K is -4"),
    "K huge": (attribute("K", 1 << 62), "attribute K"),
    "K a string": (attribute("K", "8"), "attribute K"),
    "K larger than x": (attribute("K", 4000), "input gaps is over at place"),
    "N 0": (attribute("N", 0), "attribute N is 0"),
    "N huge": (attribute("N", 1 << 40), "attribute N"),
    "N larger": (attribute("N", 11), "input scale"),
    "N much larger": (attribute("N", 20), "input scale"),
    "both as large as allowed": (lambda m: (attribute("K", 65536)(m), attribute("N", 1 << 24)(m)), "input scale"),
    "no pattern": (attribute("pattern", None), "attribute pattern"),
    "another pattern": (attribute("pattern", "8x8"), "attribute pattern is '8x8', expected one of 4x1, 4x2, 4x4"),
    "a pattern of many letters": (attribute("pattern", "4" * 5000), "attribute pattern"),
    "pattern an int": (attribute("pattern", 4), "attribute pattern"),
    "inputs": (attribute("inputs", 2), "attribute inputs is 2, expected 4"),
    "outputs": (attribute("outputs", 1 << 33), "attribute outputs"),
    "bits": (attribute("bits", 4), "attribute bits is 4, expected 8"),
    "a pattern of another kind": (attribute("pattern", "2:4"), "attribute pattern is '2:4', expected one of 4x1"),
    "gaps longer": (tensor("gaps", lambda a: np.append(a, a[:1])), r"input gaps is \[\d+\], expected \[\d+\]"),
    "gaps empty": (tensor("gaps", lambda a: a[:0]), "input gaps"),
    "gaps of two dimensions": (tensor("gaps", lambda a: a[None]), "input gaps"),
    "a gap of 0": (tensor("gaps", put(3, 0)), "input gaps is 0 behind place"),
    "a gap beyond the end": (tensor("gaps", put(-1, 200)), "input gaps is beyond the end"),
    "values shorter": (tensor("values", lambda a: a[:-1]), "input gaps"),
    "values empty": (tensor("values", lambda a: a[:0]), "input gaps"),
    "values of other blocks": (tensor("values", lambda a: a.reshape(len(a), 4, 2)), "input values"),
    "values a scalar": (tensor("values", lambda a: a[0, 0, 0]), "input values is a scalar"),
    "values over the edge": (
        lambda m: (
            tensor("gaps", lambda a: np.array([24], np.uint8))(m),
            tensor("values", lambda a: np.zeros((1, 2, 4), np.uint8))(m),
        ),
        "input values is not 0 in block row 4, column 4",
    ),
    "scale of one dimension": (tensor("scale", lambda a: a[:, 0]), "input scale"),
    "scale shorter": (tensor("scale", lambda a: a[:-1]), "input scale"),
    "scale of groups": (tensor("scale", lambda a: np.repeat(a, 2, 1)), "input scale"),
    "bias longer": (tensor("bias", lambda a: np.append(a, a)), "input bias"),
    "gaps fed": (fed_from_outside("gaps"), "input gaps is no initializer"),
    "values fed": (fed_from_outside("values"), "input values is no initializer"),
    "scale fed": (fed_from_outside("scale"), "input scale is no initializer"),
    "bias fed": (fed_from_outside("bias"), "input bias is no initializer"),
    "gaps of another type": (tensor("gaps", lambda a: a.astype(np.int8)), "gaps"),
    "values of another type": (tensor("values", lambda a: a.astype(np.int32)), "values"),
    "scale of another type": (tensor("scale", lambda a: a.astype(np.float64)), "scale"),
    "bias of another type": (tensor("bias", lambda a: a.astype(np.float16)), "bias"),
    "four inputs": (lambda m: m.graph.node[0].input.pop(), "SlimLinear"),
    "six inputs": (lambda m: m.graph.node[0].input.append("bias"), "SlimLinear"),
    "no bias": (lambda m: m.graph.node[0].input.__setitem__(4, ""), "SlimLinear"),
    "two outputs": (lambda m: m.graph.node[0].output.append("z"), "SlimLinear"),
}
GROUPED = {
    "no group_size": (attribute("group_size", None), "attribute group_size"),
    "group_size 0": (attribute("group_size", 0), "attribute group_size is 0"),
    "group_size no multiple of 4": (attribute("group_size", 6), "attribute group_size is 6, expected a multiple of 4"),
    "group_size no divisor": (attribute("group_size", 16), "attribute group_size is 16"),
    "group_size larger than K": (attribute("group_size", 48), "attribute group_size is 48"),
    "another group_size": (attribute("group_size", 4), "input scale"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_nodes_are_refused(name):
    change, message = MALFORMED[name]
    model = slim_model(random_layer(10, 18, "4x2", 0.5), functions=False)
    change(model)
    with pytest.raises(Exception, match=message):
        session(model)


@pytest.mark.parametrize("name", GROUPED)
def test_malformed_groups_are_refused(name):
    change, message = GROUPED[name]
    model = slim_model(random_layer(10, 24, "4x2", 0.5, group_size=8), functions=False)
    change(model)
    with pytest.raises(Exception, match=message):
        session(model)


def test_three_of_four_are_refused():
    model = slim_model(random_layer(2, 8, "2:4", 1.0), functions=False)
    tensor("gaps", lambda gaps: np.array([0x20, 0x22, 0x08], np.uint8))(model)  # inputs 0, 1, 2, 3 and 7 of output 0
    tensor("values", lambda values: np.full(5, 130, np.uint8))(model)
    with pytest.raises(Exception, match="not 0 in 4 weights of output 0 from input 0, expected at most 2 of 4"):
        session(model)


def test_an_unused_half_byte_is_refused():
    model = slim_model(random_layer(3, 5, "unstructured", 1.0), functions=False)
    tensor("gaps", put(-1, 0x11))(model)
    with pytest.raises(Exception, match="the last half byte of input gaps is not 0"):
        session(model)


def test_a_small_file_cannot_ask_for_a_large_layer():
    model = slim_model(random_layer(1, 60000, "4x1", 0.0), functions=False)
    tensor("gaps", lambda gaps: gaps[:-1])(model)
    tensor("values", lambda values: values[:-1])(model)
    with pytest.raises(Exception, match="over at place 14535 of 15000, expected to end at most 255 before"):
        session(model)


def test_two_of_four_may_end_in_less_than_four():
    layer = random_layer(3, 6, "2:4", 1.0)
    layer.weight[:] = [[1, 0, 1, 0, 1, 1]]
    session(slim_model(layer, functions=False))


@pytest.mark.parametrize("shape", [(), (7,), (2, 19), (18, 2), (0,), (2, 3, 17)])
def test_an_input_of_another_shape_is_an_error(shape):
    model = slim_model(random_layer(10, 18, "4x2"), functions=False)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    kernel = session(model)
    with pytest.raises(Exception, match=r"SlimLinearBlocks: .*input x"):
        kernel.run(None, {"x": random_rows(*shape)})
    assert kernel.run(None, {"x": random_rows(2, 18)})[0].shape == (2, 10)


def test_an_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("OPTIMUM_SLIM_ISA", "mmx")
    with pytest.raises(Exception, match="OPTIMUM_SLIM_ISA is 'mmx', expected one that this CPU can run: "):
        session(slim_model(random_layer(4, 4, "4x1"), functions=False))


def test_the_error_names_the_operator():
    model = slim_model(random_layer(4, 8, "4x1", group_size=4), "Silu", functions=False)
    attribute("bits", 5)(model)
    with pytest.raises(Exception, match="SlimLinearBlocksGroupedSilu: attribute bits is 5"):
        session(model)


def test_the_model_survives_a_round_trip(tmp_path):
    layer = random_layer(10, 18, "4x2")
    onnx.save(slim_model(layer), tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    session(onnx.load(tmp_path / "model.onnx"))

"""The operators of floats compute what their functions compute, and refuse what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.floats import (
    LOWEST,
    attention_inputs,
    attention_model,
    norm_inputs,
    norm_model,
    packed_attention_inputs,
    packed_attention_model,
    rms_norm_inputs,
    rms_norm_model,
    rotary_attention_inputs,
    rotary_attention_model,
    turned,
)
from tests.kernels.layers import session
from tests.kernels.test_numbers import each_isa  # noqa: F401

# Heads, batch, queries, keys, size of a head, and the mask's batch, heads and queries.
ATTENTIONS = [
    (1, 1, 1, 1, 1, (1, 1, 1)),
    (3, 2, 33, 33, 20, (2, 1, 33)),
    (2, 1, 5, 130, 64, (1, 2, 5)),
    (12, 1, 128, 128, 32, (1, 1, 1)),
    (2, 3, 7, 16, 17, (3, 2, 1)),
]

NORMS = {"residual": (norm_model, norm_inputs), "rms": (rms_norm_model, rms_norm_inputs)}


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize(("heads", "batch", "queries", "keys", "size", "mask"), ATTENTIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_is_that_of_its_function(heads, batch, queries, keys, size, mask, threads):
    inputs = attention_inputs(batch, queries, keys, heads * size, mask)
    ours = session(attention_model(heads), True, threads).run(None, inputs)[0]
    stock = session(attention_model(heads), False).run(None, inputs)[0]
    np.testing.assert_allclose(ours, stock, rtol=0, atol=3e-6)


# Heads, those of keys, batch, tokens, past tokens, size of a head.
ROTARY_ATTENTIONS = [
    (1, 1, 1, 1, 0, 2),
    (9, 3, 1, 128, 0, 64),
    (9, 3, 2, 1, 37, 64),
    (4, 4, 3, 5, 9, 20),
    (6, 2, 2, 33, 100, 18),
    (4, 1, 1, 3, 0, 128),
]


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("sizes", ROTARY_ATTENTIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_rotary_attention_is_that_of_its_function(sizes, threads):
    heads, kv_heads, *rest, size = sizes
    inputs = rotary_attention_inputs(*rest, heads, kv_heads, size)
    model = rotary_attention_model(heads, kv_heads)
    ours = session(model, True, threads).run(None, inputs)
    stock = session(model, False).run(None, inputs)
    np.testing.assert_allclose(ours[0], stock[0], rtol=0, atol=3e-6)
    np.testing.assert_allclose(ours[1], stock[1], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours[2], stock[2])
    keys = turned(inputs["key"], kv_heads, inputs["key_cos"], inputs["key_sin"]).transpose(0, 2, 1, 3)
    wanted = np.concatenate([inputs["past_key"], keys], 2)
    np.testing.assert_allclose(ours[1], wanted, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("sizes", ROTARY_ATTENTIONS)
def test_packed_attention_has_every_bit_of_that_of_its_parts(sizes):
    heads, kv_heads, *rest, size = sizes
    apart, packed = (
        inputs(*rest, heads, kv_heads, size) for inputs in (rotary_attention_inputs, packed_attention_inputs)
    )
    model = packed_attention_model(heads, kv_heads)
    wanted = session(rotary_attention_model(heads, kv_heads)).run(None, apart)
    for found, stock, right in zip(
        session(model).run(None, packed), session(model, False).run(None, packed), wanted, strict=True
    ):
        np.testing.assert_array_equal(found, right)
        np.testing.assert_allclose(stock, right, rtol=0, atol=3e-6)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("queries", [1, 2, 7, 11])
def test_tokens_that_do_not_ask_are_kept_all_the_same(queries):
    inputs, some = (rotary_attention_inputs(2, 11, 6, 4, 2, 24, count) for count in (11, queries))
    model = rotary_attention_model(4, 2)
    whole, ours, stock = (session(model, own).run(None, x) for own, x in ((True, inputs), (True, some), (False, some)))
    np.testing.assert_allclose(ours[0], whole[0][:, -queries:], rtol=0, atol=3e-6)
    for one, ours_too, right in zip(whole[1:], ours[1:], stock[1:], strict=True):
        np.testing.assert_array_equal(ours_too, one)
        np.testing.assert_allclose(ours_too, right, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours[0], stock[0], rtol=0, atol=3e-6)


@pytest.mark.usefixtures("each_isa")
def test_a_token_has_the_same_answer_whatever_is_hidden_from_it():
    inputs = rotary_attention_inputs(2, 11, 6, 4, 2, 24)
    inputs["mask"][1, :, 3, 5:8] = False  # within what is seen
    before = session(rotary_attention_model(4, 2)).run(None, inputs)[0]
    inputs["past_key"][1, :, 0] = inputs["past_value"][1, :, 0] = 50
    np.testing.assert_array_equal(session(rotary_attention_model(4, 2)).run(None, inputs)[0][1], before[1])


def test_a_token_that_sees_nothing_gets_the_mean():
    inputs = rotary_attention_inputs(1, 9, 0, 2, 2, 16)
    inputs["mask"][:, :, 4] = False
    found = session(rotary_attention_model(2, 2)).run(None, inputs)[0]
    np.testing.assert_allclose(found[0, 4], inputs["value"][0].mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("batch", "queries"), [(0, 4), (1, 0)])
def test_no_texts_have_no_answers(batch, queries):
    inputs = attention_inputs(batch, queries, 4, 16)
    assert session(attention_model(2)).run(None, inputs)[0].shape == (batch, queries, 16)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 384), (1, 128, 100), (2, 0, 8), (64, 16, 768)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_is_that_of_its_function(shape, threads, norm):
    model, inputs = NORMS[norm][0](), NORMS[norm][1](*shape)
    ours = session(model, True, threads).run(None, inputs)[0]
    stock = session(model, False).run(None, inputs)[0]
    np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("each_isa")
def test_a_text_has_the_same_answer_alone_and_in_a_batch():
    inputs = attention_inputs(3, 37, 37, 48, (3, 1, 1))
    whole = session(attention_model(2)).run(None, inputs)[0]
    alone = session(attention_model(2)).run(None, {name: value[1:2] for name, value in inputs.items()})[0]
    np.testing.assert_array_equal(alone, whole[1:2])
    for model, of_size in NORMS.values():
        inputs = of_size(3, 5, 40)
        whole = session(model()).run(None, inputs)[0]
        second = {name: value[1:2] if value.ndim == 3 else value for name, value in inputs.items()}
        np.testing.assert_array_equal(session(model()).run(None, second)[0], whole[1:2])


def test_a_key_that_is_masked_for_all_is_nothing():
    inputs = attention_inputs(1, 4, 9, 16, (1, 1, 1))
    inputs["mask"][..., 5] = LOWEST
    before = session(attention_model(2)).run(None, inputs)[0]
    inputs["key"][:, 5] = inputs["value"][:, 5] = 100
    np.testing.assert_array_equal(session(attention_model(2)).run(None, inputs)[0], before)


BAD_ATTENTION = {
    "width no multiple of heads": ({"query": (1, 4, 9), "key": (1, 4, 9), "value": (1, 4, 9)}, "a multiple of heads"),
    "other batch": ({"query": (2, 4, 8)}, "differ in batch or width"),
    "other width": ({"query": (1, 4, 6)}, "differ in batch or width"),
    "keys and values that differ": ({"value": (1, 5, 8)}, "different shapes"),
    "no keys": ({"key": (1, 0, 8), "value": (1, 0, 8), "mask": (1, 1, 1, 0)}, "no keys"),
    "mask of other keys": ({"mask": (1, 1, 1, 5)}, "the last size of input mask is 5, expected 4"),
    "mask of other queries": ({"mask": (1, 1, 3, 4)}, "size 2 of input mask is 3, expected 1 or 4"),
    "mask of other heads": ({"mask": (1, 3, 1, 4)}, "size 1 of input mask is 3, expected 1 or 2"),
    "mask of other batch": ({"mask": (2, 1, 1, 4)}, "size 0 of input mask is 2, expected 1 or 1"),
}


@pytest.mark.parametrize(("shapes", "told"), BAD_ATTENTION.values(), ids=BAD_ATTENTION)
def test_attention_that_does_not_fit_is_an_error(shapes, told):
    sizes = {"query": (1, 4, 8), "key": (1, 4, 8), "value": (1, 4, 8), "mask": (1, 1, 1, 4)} | shapes
    with pytest.raises(Exception, match=told):
        session(attention_model(2)).run(None, {name: np.zeros(size, np.float32) for name, size in sizes.items()})


BAD_ROTARY = {
    "other batch": ({"key": (2, 4, 8), "value": (2, 4, 8)}, "query and key differ in batch"),
    "mask of other tokens": ({"key": (1, 3, 8), "value": (1, 3, 8)}, "the last size of input mask is 6, expected 5"),
    "width no multiple of heads": ({"query": (1, 4, 18)}, "a multiple of q_num_heads"),
    "heads of odd size": ({"query": (1, 4, 12)}, "by an even number"),
    "angles of other tokens": ({"key_sin": (1, 3, 2)}, "input key_sin has another shape"),
    "angles of whole heads": ({"query_cos": (1, 4, 4)}, "input query_cos has another shape"),
    "other width of keys": ({"key": (1, 4, 6), "value": (1, 4, 6)}, "the width of input key is 6, expected 8"),
    "keys and values that differ": ({"value": (1, 4, 6)}, "key and value have different shapes"),
    "other past": ({"past_value": (1, 2, 3, 4)}, "past_key and past_value have different shapes"),
    "past of other heads": ({"past_key": (1, 4, 2, 4), "past_value": (1, 4, 2, 4)}, "past_key has other sizes"),
    "mask without the past": ({"mask": (1, 1, 4, 4)}, "the last size of input mask is 4, expected 6"),
}


@pytest.mark.parametrize(("shapes", "told"), BAD_ROTARY.values(), ids=BAD_ROTARY)
def test_rotary_attention_that_does_not_fit_is_an_error(shapes, told):
    sizes = {"query": (1, 4, 16), "key": (1, 4, 8), "value": (1, 4, 8), "mask": (1, 1, 4, 6)}
    sizes |= {"past_key": (1, 2, 2, 4), "past_value": (1, 2, 2, 4)} | shapes
    angles = {f"{name}_{part}": (*sizes[name][:2], 2) for name in ("query", "key") for part in ("cos", "sin")}
    sizes = angles | sizes
    inputs = {name: np.zeros(size, bool if name == "mask" else np.float32) for name, size in sizes.items()}
    with pytest.raises(Exception, match=told):
        session(rotary_attention_model(4, 2)).run(None, inputs)


BAD_PACKED = {
    "width no multiple of heads": ({"packed": (1, 4, 36)}, "the width of input packed is 36, expected a multiple"),
    "heads of odd size": ({"packed": (1, 4, 24)}, "by an even number"),
    "other angles": ({"sin": (1, 4, 4)}, "input sin has another shape"),
    "angles of other tokens": ({"cos": (1, 3, 2)}, "input cos has another shape"),
    "past of other heads": ({"past_key": (1, 4, 2, 4), "past_value": (1, 4, 2, 4)}, "past_key has other sizes"),
    "mask without the past": ({"mask": (1, 1, 4, 4)}, "the last size of input mask is 4, expected 6"),
}


@pytest.mark.parametrize(("shapes", "told"), BAD_PACKED.values(), ids=BAD_PACKED)
def test_packed_attention_that_does_not_fit_is_an_error(shapes, told):
    sizes = {"packed": (1, 4, 32), "mask": (1, 1, 4, 6), "cos": (1, 4, 2), "sin": (1, 4, 2)}
    sizes |= {"past_key": (1, 2, 2, 4), "past_value": (1, 2, 2, 4)} | shapes
    inputs = {name: np.zeros(size, bool if name == "mask" else np.float32) for name, size in sizes.items()}
    with pytest.raises(Exception, match=told):
        session(packed_attention_model(4, 2)).run(None, inputs)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "told"), [(0, 1, "q_num_heads is 0"), (3, 2, "a multiple of kv_num_heads")]
)
def test_heads_that_cannot_be_shared_are_an_error(heads, kv_heads, told):
    with pytest.raises(Exception, match=told):
        session(rotary_attention_model(heads, kv_heads))


@pytest.mark.parametrize("heads", [0, -1, 1 << 40])
def test_heads_that_make_no_sense_are_an_error(heads):
    with pytest.raises(Exception, match="attribute heads is"):
        session(attention_model(heads))


@pytest.mark.parametrize("change", [{"b": (1, 2, 5)}, {"weight": (3,)}, {"bias": (5,)}])
def test_a_norm_that_does_not_fit_is_an_error(change):
    sizes = {"a": (1, 2, 4), "b": (1, 2, 4), "weight": (4,), "bias": (4,)} | change
    with pytest.raises(Exception, match="SlimResidualNorm: inputs"):
        session(norm_model()).run(None, {name: np.zeros(size, np.float32) for name, size in sizes.items()})


def test_an_rms_norm_that_does_not_fit_is_an_error():
    with pytest.raises(Exception, match="SlimRmsNorm: input weight does not have one dimension of 4"):
        session(rms_norm_model()).run(None, {"x": np.zeros((1, 2, 4), np.float32), "weight": np.zeros(3, np.float32)})


@pytest.mark.parametrize("norm", NORMS)
def test_a_negative_epsilon_is_an_error(norm):
    with pytest.raises(Exception, match="attribute epsilon"):
        session(NORMS[norm][0](-1.0))

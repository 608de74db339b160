"""SlimMatMulNBits computes what FORMAT.md says and what the stock operator does, and refuses what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_slim.kernels.model import blocked_model
from tests.kernels.blocks import random_blocks
from tests.kernels.layers import random_rows, session
from tests.kernels.test_malformed import attribute, fed_from_outside, tensor
from tests.kernels.test_numbers import each_isa  # noqa: F401

# N, K, bits, size of a block, and whether it has zero points.
LAYERS = [
    (48, 64, 4, 32, False),
    (17, 96, 4, 32, True),
    (40, 576, 4, 16, True),
    (33, 512, 4, 256, False),
    (1, 512, 4, 128, True),
    (130, 192, 4, 64, False),
    (50, 128, 8, 32, False),
    (7, 48, 8, 16, False),
]


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_is_right_to_the_last_bit_for_any_number_of_rows(layer, threads):
    blocks = random_blocks(*layer)
    running = session(blocks.model(), True, threads)
    for rows in (1, 2, 3, 5, 16, 63, 64, 65, 131):
        x = random_rows(rows, layer[1])
        np.testing.assert_array_equal(running.run(None, {"x": x})[0], blocks.product(x))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("meeting", "met"), [("Add", np.add), ("Mul", np.multiply)])
def test_what_products_meet_is_added_or_multiplied_exactly(layer, meeting, met):
    blocks = random_blocks(*layer)
    ours, stock = (session(blocks.model(meeting=meeting), registered) for registered in (True, False))
    for rows in (1, 5, 70):
        x, other = random_rows(rows, layer[1]), random_rows(rows, layer[0], seed=2)
        wanted, inputs = met(blocks.product(x), other), {"x": x, "other": other}
        np.testing.assert_array_equal(ours.run(None, inputs)[0], wanted)
        np.testing.assert_allclose(stock.run(None, inputs)[0], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 70),
    blocks=st.integers(1, 9),
    block=st.sampled_from([16, 32, 64, 128, 256]),
    rows=st.integers(1, 70),
    asymmetric=st.booleans(),
)
def test_random_shapes_are_right_and_the_extremes_do_not_overflow(n, blocks, block, rows, asymmetric):
    layer = random_blocks(n, blocks * block, 4, block, asymmetric)
    layer.integers[0] = 15
    if layer.zero_points is not None:
        layer.zero_points[0] = 0
    x = random_rows(rows, blocks * block)
    x[0] = 1
    np.testing.assert_array_equal(session(layer.model(), True).run(None, {"x": x})[0], layer.product(x))


@pytest.mark.parametrize("layer", LAYERS)
def test_without_our_library_the_stock_operator_computes_the_same(layer):
    blocks, x = random_blocks(*layer), random_rows(5, layer[1])
    wanted = blocks.product(x)
    found = session(blocks.model(), False).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())


def test_a_row_with_an_infinity_is_nan_and_spoils_no_other():
    blocks, x = random_blocks(20, 64, 4, 32), random_rows(3, 64)
    wanted = blocks.product(x)
    x[1, 40] = np.inf
    found = session(blocks.model(), True).run(None, {"x": x})[0]
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], wanted[[0, 2]])


# The layer has 10 outputs and 64 inputs in blocks of 32, of 4 bits with zero points.
MALFORMED = {
    "no K": (attribute("K", None), "attribute K is missing"),
    "K of another size": (attribute("K", 96), "input values is .10, 2, 16., expected .10, 3, 16."),
    "K no multiple": (attribute("K", 63), "attribute block_size is 32, expected a power of two that divides K"),
    "N too large": (attribute("N", 11), "input values is"),
    "bits": (attribute("bits", 5), "attribute bits is 5, expected 4 or 8"),
    "8 bits": (attribute("bits", 8), "input values is"),
    "block": (attribute("block_size", 48), "attribute block_size is 48, expected a power of two"),
    "block 0": (attribute("block_size", 0), "attribute block_size is 0, expected 16 to 256"),
    "too few scales": (tensor("scales", lambda a: a[:-1]), "input scales is .19., expected .20. or .10, 2."),
    "zero points": (tensor("zero_points", lambda a: a[:, :0]), "input zero_points is .10, 0., expected .10, 1."),
    "scales from outside": (fed_from_outside("scales"), "input scales is no initializer"),
}


@pytest.mark.parametrize("change", MALFORMED)
def test_a_node_that_breaks_the_format_is_an_error_that_says_why(change):
    model = random_blocks(10, 64, 4, 32, True).model(functions=False)
    apply, message = MALFORMED[change]
    apply(model)
    with pytest.raises(Exception, match=f"SlimMatMulNBits: .*{message}"):
        session(model, True)


def test_zero_points_of_8_bits_stay_with_the_stock_operator():
    layer = random_blocks(10, 64, 4, 32, True)
    values = np.zeros((10, 2, 32), np.uint8)
    model = blocked_model(values, layer.scales, np.zeros((10, 2), np.uint8), 8, functions=False)
    with pytest.raises(Exception, match="number of inputs is 4, expected 3 where bits is 8"):
        session(model, True)

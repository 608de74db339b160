"""A weight survives packing, in the layout that FORMAT.md describes."""

import numpy as np
import pytest

from optimum_slim.kernels.packing import pack, unpack
from optimum_slim.kernels.pattern import PATTERNS, pattern_named
from tests.kernels.layers import random_layer

SHAPES = [(1, 1), (3, 5), (4, 4), (16, 64), (17, 67), (130, 30)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_unpacking_gives_the_weight_back(pattern, n, k, density):
    weight = random_layer(n, k, pattern, density).weight
    mask, values = pack(weight, pattern)
    assert mask.dtype == np.uint8
    assert values.dtype == np.int8
    np.testing.assert_array_equal(unpack(mask, values, n, k, pattern), weight)


def test_blocks_are_stored_row_by_row_and_output_by_output():
    weight = np.zeros((4, 8), np.int8)
    weight[0:2, 4:8] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    weight[2, 0] = 9
    mask, values = pack(weight, "4x2")
    assert mask.tolist() == [0b0110]
    assert values.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0]


def test_blocks_over_the_edge_are_filled_with_zeros():
    mask, values = pack(np.array([[1, 2, 3, 4, 5]], np.int8), "4x4")
    assert mask.tolist() == [0b11]
    assert values.tolist() == [1, 2, 3, 4, *[0] * 12, 5, *[0] * 15]


def test_dense_keeps_blocks_of_zeros():
    mask, values = pack(np.zeros((4, 12), np.int8), "dense")
    assert mask.tolist() == [0b111]
    assert len(values) == 48


def test_unused_bits_are_zero():
    mask, _ = pack(np.ones((3, 3), np.int8), "unstructured")
    assert mask.tolist() == [0xFF, 0x01]


def test_a_weight_that_breaks_two_of_four_is_refused():
    with pytest.raises(ValueError, match="output 1 has 3 from input 4"):
        pack(np.array([[0] * 8, [1, 1, 0, 0, 1, 1, 1, 0]], np.int8), "2:4")


@pytest.mark.parametrize("weight", [np.zeros((2, 2), np.float32), np.zeros(4, np.int8)])
def test_other_weights_are_refused(weight):
    with pytest.raises(ValueError, match="int8 of two dimensions"):
        pack(weight, "dense")


def test_an_unknown_pattern_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'8x8'.*unstructured, 2:4, 4x1, 4x2, 4x4, dense"):
        pattern_named("8x8")


def test_mask_and_values_of_another_length_are_refused():
    mask, values = pack(np.ones((4, 8), np.int8), "4x1")
    with pytest.raises(ValueError, match="the mask must have"):
        unpack(mask, values, 5, 8, "4x1")
    with pytest.raises(ValueError, match="the values must have"):
        unpack(mask, values[:-1], 4, 8, "4x1")

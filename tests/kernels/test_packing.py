"""A weight survives packing, in the layout that FORMAT.md describes."""

import numpy as np
import pytest

from optimum_slim.kernels.packing import pack, unpack
from optimum_slim.kernels.pattern import PATTERNS, pattern_named
from tests.kernels.layers import random_layer

SHAPES = [(1, 1), (3, 5), (4, 4), (16, 64), (17, 67), (130, 30)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
def test_unpacking_gives_the_weight_back(pattern, n, k, density):
    weight = random_layer(n, k, pattern, density).weight
    gaps, values = pack(weight, pattern)
    assert gaps.dtype == values.dtype == np.uint8
    np.testing.assert_array_equal(unpack(gaps, values, n, k, pattern), weight)


def weights_of(values):
    return (values.astype(int) - 128).tolist()


def test_blocks_are_stored_row_by_row_and_output_by_output():
    weight = np.zeros((4, 8), np.int8)
    weight[0:2, 4:8] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    weight[2, 4] = -9
    gaps, values = pack(weight, "4x2")
    assert gaps.tolist() == [1, 2]
    assert weights_of(values) == [[[1, 2, 3, 4], [5, 6, 7, 8]], [[-9, 0, 0, 0], [0, 0, 0, 0]]]


def test_blocks_over_the_edge_are_filled_with_zeros():
    gaps, values = pack(np.array([[1, 2, 3, 4, 5]], np.int8), "4x4")
    assert gaps.tolist() == [0, 1]
    nothing = [[0] * 4] * 3
    assert weights_of(values) == [[[1, 2, 3, 4], *nothing], [[5, 0, 0, 0], *nothing]]


def test_single_weights_are_stored_input_by_input():
    gaps, values = pack(np.array([[0, 3, -128], [127, 0, 4]], np.int8), "unstructured")
    assert gaps.tolist() == [0x11, 0x12]
    assert weights_of(values) == [127, 3, -128, 4]


def test_long_gaps_are_bridged_by_zeros():
    weight = np.zeros((1, 40), np.int8)
    weight[0, [0, 17]] = 5, 6
    gaps, values = pack(weight, "unstructured")
    assert gaps.tolist() == [0xF0, 0xF2]
    assert weights_of(values) == [5, 0, 6, 0]  # the last one leads to within 15 of the end
    weight = np.zeros((1, 4 * 600), np.int8)
    weight[0, 4 * 300] = 7
    gaps, values = pack(weight, "4x1")
    assert gaps.tolist() == [255, 45, 255]
    assert weights_of(values[:, 0, 0]) == [0, 7, 0]


def test_dense_keeps_zeros_and_has_no_gaps():
    gaps, values = pack(np.array([[0, 1], [-2, 0]], np.int8), "dense")
    assert gaps.shape == (0,)
    assert weights_of(values) == [[0, 1], [-2, 0]]


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


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gaps_and_values_of_another_shape_are_refused(pattern):
    gaps, values = pack(np.tile(np.array([1, 0], np.int8), (4, 4)), pattern)
    with pytest.raises(ValueError, match="the gaps must have"):
        unpack(np.append(gaps, gaps[:1] + np.uint8(1)) if len(gaps) else np.ones(1, np.uint8), values, 4, 8, pattern)
    with pytest.raises(ValueError, match=r"the (gaps|values) must have"):
        unpack(gaps, values[:-2], 4, 8, pattern)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1", "4x2", "4x4"])
def test_gaps_that_lead_beyond_the_weight_are_refused(pattern):
    weight = np.zeros((8, 16), np.int8)
    weight[:, ::4] = 1
    gaps, values = pack(weight, pattern)
    with pytest.raises(ValueError, match="the gaps lead to block"):
        unpack(gaps, values, 4, 16, pattern)

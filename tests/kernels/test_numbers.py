"""Every instruction set computes FORMAT.md's numbers, bit by bit, whatever the shape, the pattern and the batch."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from optimum_slim.kernels.function import MEETINGS, OTHER
from optimum_slim.kernels.library import ISA_VARIABLE, isa, supported_isas
from optimum_slim.kernels.pattern import PATTERNS
from tests.kernels.layers import expected, fed, random_layer, random_rows, run, session, slim_model

ISAS = ["avx512vnni", "avxvnni", "avx2", "neon", "portable"]
ROWS = [0, 1, 2, 3, 5, 16, 17, 33, 90, 128, 129]
SHAPES = [(1, 1), (16, 16), (17, 5), (48, 67), (130, 300)]
ACTIVATIONS = {
    "Relu": torch.relu,
    "Gelu": torch.nn.functional.gelu,
    "GeluTanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "Silu": torch.nn.functional.silu,
}


@pytest.fixture(params=ISAS)
def each_isa(request, monkeypatch):
    if request.param not in supported_isas():
        pytest.skip(f"this CPU cannot run {request.param}")
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    assert isa() == request.param


def exact_activation(name, x):
    """In float64."""
    x = torch.tensor(x, dtype=torch.float64)
    if name == "Gelu":  # torch's own loses the tail: 1 + erf cancels
        return (0.5 * x * torch.special.erfc(-x / 2**0.5)).numpy()
    return ACTIVATIONS[name](x).numpy()


def allowed_error(name, x, exact):
    # In the tails 1 + erf cancels, for Gelu, and rounding x alone moves the others.
    least = 5e-7 * np.abs(x) if name == "Gelu" else 1e-7
    return np.maximum(2e-6 * np.abs(exact), least)


def check(layer, rows=ROWS):
    of_layer = session(slim_model(layer, functions=False))
    for count in rows:
        x = random_rows(count, layer.k)
        np.testing.assert_array_equal(of_layer.run(None, {"x": x})[0], expected(layer, x), err_msg=f"{count} rows")


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.6, 1.0])
def test_outputs_are_exact(pattern, density):
    for n, k in SHAPES:
        check(random_layer(n, k, pattern, density))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("k", "group_size"), [(4, 4), (96, 32), (300, 20), (300, 300)])
def test_grouped_outputs_are_exact(pattern, k, group_size):
    for density in (0.0, 0.4, 1.0):
        check(random_layer(50, k, pattern, density, group_size), rows=[0, 1, 3, 8, 17, 40])


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_largest_sums_do_not_saturate(pattern):
    layer = random_layer(20, 4096, pattern)
    layer.weight[layer.weight != 0] = -128
    of_layer = session(slim_model(layer, functions=False))
    for sign in (1, -1):
        for count in (1, 70):
            x = np.full((count, layer.k), sign, np.float32)
            np.testing.assert_array_equal(of_layer.run(None, {"x": x})[0], expected(layer, x))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("magnitude", [1, 32, 33, 64, 65, 127])
def test_sums_at_the_edge_of_16_bits_are_exact(pattern, magnitude):
    """2 or 4 weights of one sign times 255 just fit, or just do not, and those of mixed signs fit or not as a whole."""
    layer = random_layer(36, 1003, pattern)
    positive = np.random.default_rng(2).random(layer.weight.shape) < np.linspace(0, 1, layer.n)[:, None]
    layer.weight[:] = np.where(positive, magnitude, -magnitude - (magnitude == 127)) * (layer.weight != 0)
    of_layer = session(slim_model(layer, functions=False))
    signs = np.sign(layer.weight).astype(np.float32)
    for x in (np.concatenate([signs, -signs]), signs[:7], -signs[-7:]):
        x = np.where(x == 0, 1, x)  # one row for each output, which its weights agree with or oppose
        np.testing.assert_array_equal(of_layer.run(None, {"x": x})[0], expected(layer, x))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("pattern", ["4x2", "unstructured", "dense"])
def test_a_long_input_is_taken_piece_by_piece(pattern):
    check(random_layer(20, 40, pattern, 0.2), rows=[1500])


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("magnitude", [1e-38, 1e-31, 1e-20, 1e20, 3e38])
def test_very_small_and_large_rows_are_exact(magnitude):
    layer = random_layer(17, 40, "4x1")
    x = random_rows(3, 40)
    x *= np.float32(magnitude) / np.abs(x).max()
    np.testing.assert_array_equal(run(layer, x), expected(layer, x))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("group_size", [None, 4])
def test_activations_are_close_to_the_exact_functions(activation, group_size):
    layer = random_layer(2000, 8, "4x1", 0.0, group_size)
    layer.bias[:] = np.linspace(-14, 14, layer.n, dtype=np.float32)
    exact = exact_activation(activation, layer.bias)
    for rows in (1, 40):
        y = run(layer, random_rows(rows, 8), activation)
        assert (y == y[0]).all()
        assert (np.abs(y[0] - exact) <= allowed_error(activation, layer.bias, exact)).all()


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize("group_size", [None, 20])
def test_what_outputs_meet_is_added_or_multiplied_exactly(pattern, meeting, group_size):
    layer = random_layer(50, 100, pattern, 0.4, group_size)
    of_layer = session(slim_model(layer, meeting, functions=False))
    for count in (*ROWS, 600):
        x = random_rows(count, layer.k)
        y = of_layer.run(None, fed(layer, x, meeting))[0]
        np.testing.assert_array_equal(y, expected(layer, x, meeting), err_msg=f"{count} rows")


@pytest.mark.parametrize("shape", [(3, 15), (1, 16), (3, 16, 1), (16,), (0, 16)])
def test_outputs_meet_nothing_of_another_shape(shape):
    of_layer = session(slim_model(random_layer(16, 8, "4x1"), "Mul", functions=False))
    with pytest.raises(Exception, match=r"input other|Invalid rank|Got invalid dimensions"):
        of_layer.run(None, {"x": random_rows(3, 8), OTHER: random_rows(*shape)})


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("ending", ["", "Gelu", "Add"])
@pytest.mark.parametrize("group_size", [None, 20])
def test_a_row_alone_is_the_row_in_a_batch(pattern, ending, group_size):
    layer = random_layer(50, 100, pattern, 0.2, group_size)
    of_layer = session(slim_model(layer, ending, functions=False))
    whole_in = fed(layer, random_rows(130, 100), ending)
    whole = of_layer.run(None, whole_in)[0]
    for rows in (slice(0, 1), slice(129, 130), slice(7, 12), slice(30, 50), slice(10, 70)):
        alone = {name: value[rows] for name, value in whole_in.items()}
        np.testing.assert_array_equal(of_layer.run(None, alone)[0], whole[rows])


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rows", [1, 12, 300])
@pytest.mark.parametrize("ending", ["Silu", "Mul"])
def test_threads_change_no_bit(pattern, rows, ending):
    layer = random_layer(1030, 520, pattern)
    x = random_rows(rows, layer.k)
    one, two = (run(layer, x, ending, threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("pattern", ["4x4", "2:4", "unstructured"])
def test_threads_may_share_a_session(pattern):
    layer = random_layer(300, 256, pattern, 0.2)
    shared = session(slim_model(layer, functions=False), threads=2)
    inputs = [random_rows(rows, layer.k) for rows in (1, 3, 20, 65, 130, 2, 16, 40)]

    def work(x):
        return [shared.run(None, {"x": x})[0] for _ in range(30)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        for x, found in zip(inputs, pool.map(work, inputs)):
            for y in found:
                np.testing.assert_array_equal(y, expected(layer, x))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("activation", ["", *ACTIVATIONS])
def test_rows_with_infinities_and_nans_spoil_only_themselves(pattern, activation):
    layer = random_layer(40, 24, pattern)
    for rows in (4, 50):
        x = random_rows(rows, 24)
        clean = run(layer, x, activation)
        x[0, 3], x[1, 23], x[3, 0] = np.nan, np.inf, -np.inf
        y = run(layer, x, activation)
        assert np.isnan(y[[0, 1, 3]]).all()
        others = [row for row in range(rows) if row not in (0, 1, 3)]
        np.testing.assert_array_equal(y[others], clean[others])


@pytest.mark.parametrize("shape", [(8,), (2, 8), (2, 3, 8), (2, 0, 8), (0, 8), (1, 2, 3, 8)])
@pytest.mark.parametrize("group_size", [None, 4])
def test_any_number_of_leading_dimensions_is_kept(shape, group_size):
    layer = random_layer(16, 8, "4x4", group_size=group_size)
    x = random_rows(*shape)
    np.testing.assert_array_equal(run(layer, x), expected(layer, x))

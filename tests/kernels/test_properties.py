"""What FORMAT.md promises of SlimLinear holds for any size, pattern, density, group size and number of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_slim.kernels.packing import pack, unpack
from optimum_slim.kernels.pattern import PATTERNS
from tests.kernels.floats import attention_inputs, attention_model, norm_inputs, norm_model
from tests.kernels.layers import Layer, expected, random_layer, random_rows, session, slim_model
from tests.kernels.test_numbers import ACTIVATIONS, allowed_error, each_isa, exact_activation  # noqa: F401

# The same examples each time, so that none needs to be stored; no deadline, for a busy machine may hold up any of them.
FEW = settings(max_examples=50, derandomize=True, deadline=None, database=None)
MANY = settings(FEW, max_examples=1000)
few_or_many = pytest.mark.parametrize(
    "examples", [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
)


@dataclass(frozen=True)
class Problem:
    """A random layer and input, told by few numbers, which a failure shows."""

    n: int
    k: int
    pattern: str
    density: float
    group_size: int | None
    rows: int
    magnitude: int  # of the largest row, a power of ten
    seed: int

    @cached_property
    def layer(self) -> Layer:
        return random_layer(self.n, self.k, self.pattern, self.density, self.group_size, self.seed)

    @cached_property
    def x(self) -> np.ndarray:
        """Rows of different magnitudes."""
        least, most = sorted((0, self.magnitude))
        powers = np.random.default_rng(self.seed).integers(least, most + 1, (self.rows, 1))
        return random_rows(self.rows, self.k, seed=self.seed) * np.float32(10) ** powers.astype(np.float32)


@st.composite
def problems(
    draw: st.DrawFn, grouped: bool | None = None, least_rows: int = 0, magnitudes: tuple[int, int] = (-34, 30)
) -> Problem:
    """With groups, without, or (None) either."""
    group_size, k = None, draw(st.integers(1, 200))
    if draw(st.booleans()) if grouped is None else grouped:
        group_size = 4 * draw(st.integers(1, 16))
        k = group_size * draw(st.integers(1, max(1, 200 // group_size)))
    return Problem(
        n=draw(st.integers(1, 200)),
        k=k,
        pattern=draw(st.sampled_from(list(PATTERNS))),
        density=draw(st.sampled_from((0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0))),
        group_size=group_size,
        rows=draw(st.integers(least_rows, 140)),
        magnitude=draw(st.integers(*magnitudes)),
        seed=draw(st.integers(0, 9)),
    )


def output(problem: Problem, x: np.ndarray, activation: str = "", registered: bool = True) -> np.ndarray:
    model = slim_model(problem.layer, activation, functions=not registered)
    return session(model, registered).run(None, {"x": x})[0]


@few_or_many
@pytest.mark.usefixtures("each_isa")
def test_outputs_are_exact(examples):
    @examples
    @given(problems())
    def holds(problem):
        np.testing.assert_array_equal(output(problem, problem.x), expected(problem.layer, problem.x))

    holds()


@few_or_many
@pytest.mark.usefixtures("each_isa")
def test_activations_are_close_to_the_exact_functions(examples):
    @examples
    @given(problems(magnitudes=(-3, 1)), st.sampled_from(list(ACTIVATIONS)))
    def holds(problem, activation):
        before = expected(problem.layer, problem.x)
        exact = exact_activation(activation, before)
        error = np.abs(output(problem, problem.x, activation) - exact)
        assert (error <= allowed_error(activation, before, exact)).all()

    holds()


@few_or_many
@pytest.mark.usefixtures("each_isa")
def test_a_row_alone_is_the_row_in_a_batch(examples):
    @examples
    @given(problems(least_rows=1), st.sampled_from(["", *ACTIVATIONS]), st.data())
    def holds(problem, activation, data):
        of_layer = session(slim_model(problem.layer, activation, functions=False))
        whole = of_layer.run(None, {"x": problem.x})[0]
        first = data.draw(st.integers(0, problem.rows - 1), "first row")
        for rows in (slice(first, first + 1), slice(first, None)):
            np.testing.assert_array_equal(of_layer.run(None, {"x": problem.x[rows]})[0], whole[rows])

    holds()


@few_or_many
@pytest.mark.usefixtures("each_isa")
def test_the_function_is_bit_equal_to_the_kernel(examples):
    @examples
    @given(problems(grouped=False))
    def holds(problem):
        stock = output(problem, problem.x, registered=False)
        np.testing.assert_array_equal(stock, output(problem, problem.x))

    holds()


@few_or_many
def test_unpacking_gives_the_weight_back(examples):
    @examples
    @given(problems())
    def holds(problem):
        gaps, values = pack(problem.layer.weight, problem.pattern)
        again = unpack(gaps, values, problem.n, problem.k, problem.pattern)
        np.testing.assert_array_equal(again, problem.layer.weight)

    holds()


@few_or_many
def test_packing_gives_gaps_and_values_back(examples):
    @examples
    @given(st.sampled_from(["unstructured", "4x1", "4x2", "4x4"]), st.integers(0, 40), st.integers(0, 9))
    def holds(pattern, kept, seed):
        shape, draw = PATTERNS[pattern], np.random.default_rng(seed)
        longest = 15 if shape.kind == "Singles" else 255
        gaps = draw.integers(1, longest + 1, kept).astype(np.uint8)
        values = draw.integers(129, 256, (kept, shape.outputs, shape.inputs)).astype(np.uint8)
        blocks = int(gaps.sum()) + int(draw.integers(1, longest + 1))
        n, k = shape.outputs, shape.inputs * blocks
        if shape.kind == "Singles":
            n, k, values = blocks, 1, values.reshape(-1)
            gaps = np.append(gaps, np.zeros(kept % 2, np.uint8)).reshape(-1, 2)
            gaps = gaps[:, 0] + 16 * gaps[:, 1]
        again = pack(unpack(gaps, values, n, k, pattern), pattern)
        np.testing.assert_array_equal(again[0], gaps)
        np.testing.assert_array_equal(again[1], values)

    holds()


@few_or_many
@pytest.mark.usefixtures("each_isa")
def test_attention_is_that_of_its_function(examples):
    @examples
    @given(
        heads=st.integers(1, 6),
        size=st.integers(1, 70),
        batch=st.integers(1, 3),
        queries=st.integers(1, 70),
        keys=st.integers(1, 70),
        of_one=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    )
    def holds(heads, size, batch, queries, keys, of_one):
        mask = tuple(1 if one else whole for one, whole in zip(of_one, (batch, heads, queries)))
        inputs = attention_inputs(batch, queries, keys, heads * size, mask)
        model = attention_model(heads)
        ours, stock = (session(model, registered).run(None, inputs)[0] for registered in (True, False))
        np.testing.assert_allclose(ours, stock, rtol=0, atol=3e-6)
        last = {name: value[-1:] for name, value in inputs.items()}
        np.testing.assert_array_equal(session(model).run(None, last)[0], ours[-1:])

    holds()


@few_or_many
@pytest.mark.usefixtures("each_isa")
def test_the_norm_is_that_of_its_function(examples):
    @examples
    @given(batch=st.integers(1, 3), tokens=st.integers(1, 70), width=st.integers(1, 400))
    def holds(batch, tokens, width):
        inputs = norm_inputs(batch, tokens, width)
        ours, stock = (session(norm_model(), registered).run(None, inputs)[0] for registered in (True, False))
        np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-5)
        last = inputs | {name: inputs[name][-1:] for name in ("a", "b")}
        np.testing.assert_array_equal(session(norm_model()).run(None, last)[0], ours[-1:])

    holds()

"""A file with SlimLinear loads anywhere: its functions compute what the kernels compute."""

import numpy as np
import onnx
import pytest

from optimum_slim.kernels.function import DOMAIN, ENDINGS, MEETINGS, OPERATORS, slim_functions, slim_node
from optimum_slim.kernels.pattern import PATTERNS
from tests.kernels.layers import expected, random_layer, random_rows, run, session, slim_model


def operators_of(path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 5), (48, 64), (33, 130)])
def test_the_function_is_bit_equal_to_the_kernel(pattern, n, k):
    layer = random_layer(n, k, pattern)
    stock = session(slim_model(layer), registered=False)
    kernel = session(slim_model(layer))
    for rows in (0, 1, 5, 40):
        x = random_rows(rows, k)
        y = stock.run(None, {"x": x})[0]
        np.testing.assert_array_equal(y, expected(layer, x))
        np.testing.assert_array_equal(y, kernel.run(None, {"x": x})[0])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("meeting", MEETINGS)
def test_the_function_of_a_meeting_is_bit_equal_to_the_kernel(pattern, meeting):
    layer = random_layer(33, 24, pattern)
    for shape in ((24,), (2, 24), (2, 20, 24), (0, 24)):
        x = random_rows(*shape)
        y = run(layer, x, meeting, registered=False)
        np.testing.assert_array_equal(y, expected(layer, x, meeting))
        np.testing.assert_array_equal(y, run(layer, x, meeting))


@pytest.mark.parametrize("group_size", [None, 8])
def test_rows_with_infinities_and_nans_spoil_only_themselves(group_size):
    layer = random_layer(18, 24, "4x1", group_size=group_size)
    x = random_rows(6, 24)
    clean = run(layer, x, registered=False)
    x[0, 3], x[1, 23], x[3, 0] = np.nan, np.inf, -np.inf
    y = run(layer, x, registered=False)
    assert np.isnan(y[[0, 1, 3]]).all()
    np.testing.assert_array_equal(y[[2, 4, 5]], clean[[2, 4, 5]])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 0, 24), (0, 24), (2, 3, 24)])
def test_the_grouped_function_is_close_to_the_kernel(pattern, shape):
    layer = random_layer(18, 24, pattern, group_size=8)
    x = random_rows(*shape)
    y = run(layer, x, registered=False)
    np.testing.assert_allclose(y, run(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("group_size", [None, 8])
def test_functions_with_endings_are_close_to_the_kernels(ending, group_size):
    layer = random_layer(18, 24, "4x1", group_size=group_size)
    x = random_rows(7, 24)
    np.testing.assert_allclose(run(layer, x, ending, registered=False), run(layer, x, ending), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("group_size", [None, 8])
def test_a_registered_kernel_goes_before_the_function(ending, group_size, tmp_path):
    """ONNX's text says the opposite; this is what ONNX Runtime does."""
    layer = random_layer(16, 24, "4x1", group_size=group_size)
    model = slim_model(layer, ending)
    session(model, optimized=str(tmp_path / "optimized.onnx"))
    assert operators_of(tmp_path / "optimized.onnx") == [model.graph.node[0].op_type]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("group_size", [None, 8])
def test_a_stock_session_rebuilds_the_weight_once(ending, group_size, tmp_path):
    layer = random_layer(32, 64, "4x2", group_size=group_size)
    session(slim_model(layer, ending), registered=False, optimized=str(tmp_path / "optimized.onnx"))
    operators = operators_of(tmp_path / "optimized.onnx")
    assert not {"BitwiseAnd", "CumSum", "ScatterND", "Transpose", "Unsqueeze", "Slice"} & set(operators)
    assert len(operators) < 30
    graph = onnx.load(str(tmp_path / "optimized.onnx")).graph
    assert [64, 32] in [list(tensor.dims) for tensor in graph.initializer]
    assert {tensor.name for tensor in graph.initializer}.isdisjoint({"gaps", "values"})


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22])
def test_functions_pass_the_checker(opset):
    model = slim_model(random_layer(8, 8, "4x1"), functions=False)
    model.functions.extend(slim_functions(OPERATORS, opset))
    model.opset_import[0].version = opset
    onnx.checker.check_model(model, full_check=True)
    assert {function.name for function in model.functions} == set(OPERATORS)


def test_only_what_is_called_is_added():
    assert [f.name for f in slim_functions(["SlimLinearGelu"])] == ["SlimLinear", "SlimLinearGelu"]
    assert [f.name for f in slim_functions([])] == []


@pytest.mark.parametrize("dims", [["batch", "tokens", 8], [2, 3, 8], [2, "tokens", 8], [8]])
def test_shapes_are_inferred(dims):
    model = slim_model(random_layer(12, 8, "4x1"), "Gelu", dims)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert session(model).get_outputs()[0].shape == [*dims[:-1], 12]


def test_a_size_without_a_name_stays_unknown():
    model = slim_model(random_layer(12, 8, "4x1"), dims=[2, None, 8])
    kernel = session(model)
    assert kernel.get_outputs()[0].shape == [2, None, 12]
    assert kernel.run(None, {"x": random_rows(2, 3, 8)})[0].shape == (2, 3, 12)


def test_an_unknown_rank_stays_unknown():
    model = slim_model(random_layer(12, 8, "4x1"), functions=False)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    kernel = session(model)
    assert kernel.run(None, {"x": random_rows(2, 3, 8)})[0].shape == (2, 3, 12)


def test_mistakes_in_a_node_are_named():
    names = ["x", "gaps", "values", "scale", "bias"]
    with pytest.raises(ValueError, match="no ending is named 'Tanh'; there are Relu, Gelu"):
        slim_node(names, "y", 4, 4, "4x1", "Tanh")
    with pytest.raises(ValueError, match="no pattern is named '8x8'"):
        slim_node(names, "y", 4, 4, "8x8")
    with pytest.raises(ValueError, match="no operator is named 'SlimLinearTanh'"):
        slim_functions(["SlimLinearTanh"])
    with pytest.raises(ValueError, match="opset 18"):
        slim_functions(["SlimLinear"], 17)
    node = slim_node(names, "y", 4, 4, "4x1", "Gelu", 4)
    assert (node.domain, node.op_type) == (DOMAIN, "SlimLinearBlocksGroupedGelu")


@pytest.mark.parametrize("pattern", ["4x1", "4x2", "4x4"])
def test_functions_need_not_cut_where_blocks_divide_the_weight(pattern):
    layer = random_layer(16, 24, pattern)
    model = slim_model(layer, functions=False)
    model.functions.extend(slim_functions([model.graph.node[0].op_type], over_edge=False))
    assert "Slice" not in {node.op_type for node in model.functions[0].node}
    x = random_rows(5, 24)
    np.testing.assert_array_equal(session(model, registered=False).run(None, {"x": x})[0], expected(layer, x))

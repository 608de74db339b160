"""From the fp32 ONNX file to the one that is served: how numbers are stored and multiplied."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from optimum_slim.data.statistics import Batches
from optimum_slim.deploy.attention import fold_scales, fuse_attention
from optimum_slim.deploy.blocks import BLOCK_BITS, AccuracyLevel, set_level, share_blocks, write_blocks
from optimum_slim.deploy.calibration import Method, input_ranges
from optimum_slim.deploy.decoding import fuse_cached_attention, own_cached_attention
from optimum_slim.deploy.glue import freeze_shapes
from optimum_slim.deploy.graph import (
    fold_transposed_weights,
    quantize_embeddings,
    share_embeddings,
    sum_residuals,
    tied_heads,
)
from optimum_slim.deploy.integers import OnGrid, exact_weights
from optimum_slim.deploy.joined import join_linears
from optimum_slim.deploy.logits import Logits, last_logits
from optimum_slim.deploy.lowering import lower
from optimum_slim.deploy.meetings import fuse_meetings
from optimum_slim.deploy.names import nodes_of
from optimum_slim.deploy.norms import fuse_residual_norms, fuse_rms_norms
from optimum_slim.deploy.read_tokens import compute_read_tokens
from optimum_slim.deploy.static import quantize_linears, static_linears, uncalibrated
from optimum_slim.deploy.stored import bring_in, is_large, read_graph, save_onnx
from optimum_slim.deploy.wiring import attribute_of
from optimum_slim.progress import logs_silenced

PREPARED = "prepared.onnx"  # the file of a graph that several precisions are made of


def prepared(source: Path, logits: Logits = "all") -> onnx.ModelProto:
    """The graph of an fp32 export with less to compute, whatever the precision will be.

    Args:
        logits: of which tokens a decoder gives any where a session does not `read_all_logits`.
    """
    graph = read_graph(source)
    sum_residuals(graph)
    freeze_shapes(graph)
    fold_scales(graph)
    fuse_cached_attention(graph)
    if logits == "last":
        last_logits(graph)
    compute_read_tokens(graph)
    return graph


def fp32(graph: onnx.ModelProto, target: Path) -> None:
    """Floats stay; only the graph is made faster."""
    share_embeddings(graph, tied_heads(graph))
    save_onnx(graph, target)


def int8_dynamic(graph: onnx.ModelProto, target: Path, high: Collection[str] = ()) -> None:
    """8-bit weights with a scale per output, activations to uint8 while running with a scale per tensor (Jacob et al.,
    arXiv:1712.05877, as ONNX Runtime's dynamic quantization). Products of two activations stay float: they are small,
    and quantizing them costs the most accuracy.

    Args:
        high: weights that stay fp32, by torch name.
    """
    bring_in(graph)  # as quantize_dynamic wants them
    large = is_large(graph)
    fold_transposed_weights(graph)
    tied = tied_heads(graph)
    _gemms_to_matmuls(graph)
    products, tables = _left(graph, high)
    with logs_silenced():
        quantize_dynamic(
            graph,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=products,
            use_external_data_format=large,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
        )
    quantized = read_graph(target)
    exact_weights(quantized, graph)
    quantize_embeddings(quantized, tied, tables)
    save_onnx(quantized, target)


def int8_static(
    graph: onnx.ModelProto,
    target: Path,
    texts: Batches,
    method: Method = "minmax",
    grids: Mapping[str, OnGrid] | None = None,
    high: Collection[str] = (),
) -> None:
    """8-bit weights with a scale per output, activations to uint8 with a scale per tensor that stands in the file
    (Jacob et al., arXiv:1712.05877): found by training (`grids`), else on texts.

    Args:
        texts: to calibrate on. method: how, see `input_ranges`. grids: of weights that have one, by torch name.
        high: weights that stay fp32, by torch name.
    """
    grids = grids or {}
    fold_transposed_weights(graph)
    tied, products, tables = tied_heads(graph), *_left(graph, high)
    linears = [one for one in static_linears(graph) if one.nodes[0].name not in products]
    ranges = input_ranges(graph, uncalibrated(linears, grids), texts, method)
    quantize_linears(graph, linears, grids, ranges)
    quantize_embeddings(graph, tied, tables)
    save_onnx(graph, target)


def in_blocks(
    graph: onnx.ModelProto,
    target: Path,
    bits: int,
    grids: Mapping[str, OnGrid] | None = None,
    high: Collection[str] = (),
    accuracy_level: AccuracyLevel = 4,
) -> None:
    """Weights of 4 or 8 bits in blocks of 32 inputs, multiplied with float activations that are rounded per row and
    block (MatMulNBits, by our kernels where they are built): for decoders, which one activation scale per tensor ruins.
    A head and the embedding that it shares are included.

    Args:
        bits: of weights that no grid tells of. grids: of weights that stand on one, by torch name: they keep its
        integers, groups and bits. high: weights that stay fp32, by torch name. accuracy_level: 1 leaves activations
        floats.
    """
    fold_transposed_weights(graph)
    tied = tied_heads(graph)
    _gemms_to_matmuls(graph)
    products, tables = _left(graph, high)
    write_blocks(graph, bits, grids or {}, products)
    share_blocks(graph, {head: table for head, table in tied.items() if table not in tables})
    quantize_embeddings(graph, {}, tables)
    set_level(graph, accuracy_level)
    own_cached_attention(graph)
    fuse_rms_norms(graph)
    join_linears(graph)
    fuse_meetings(graph)
    save_onnx(graph, target)


def int8_rows(
    graph: onnx.ModelProto,
    target: Path,
    group_size: int | None = None,
    patterns: Mapping[str, str] | None = None,
    grids: Mapping[str, OnGrid] | None = None,
    high: Collection[str] = (),
) -> None:
    """int8 linears whose activations have a scale per row, or per row and group of inputs (SlimLinear), so that one
    large value ruins no other row.

    Args:
        group_size: inputs that share a scale; default: all inputs of a row.
        patterns: of the weights that run sparse, by torch name. grids: of those that stand on one.
        high: weights that stay fp32, likewise.
    """
    fuse_residual_norms(graph)
    fuse_rms_norms(graph)
    fuse_attention(graph)
    own_cached_attention(graph)
    tables = _left(graph, high)[1]
    lower(graph, patterns or {}, group_size, grids, high)
    quantize_embeddings(graph, {}, tables)
    join_linears(graph)
    fuse_meetings(graph)
    save_onnx(graph, target)


# Each takes a `prepared` graph, which it changes, and writes the file that is served; all but fp32 can leave weights
# `high`.
PRECISIONS: dict[str, Callable[..., None]] = {
    "fp32": fp32,
    "int8-dynamic": int8_dynamic,
    "int8-static": int8_static,
    "int8-rows": int8_rows,
    **{name: partial(in_blocks, bits=bits) for name, bits in BLOCK_BITS.items()},
}


def make_precisions(
    source: Path, work: Path, wanted: Mapping[str, Mapping[str, Any]], logits: Logits = "all", keep: bool = False
) -> dict[str, Path]:
    """A folder that an ORTModel loads for each wanted precision.

    Args:
        source: folder of an fp32 export. work: where the folders are made. wanted: options by precision, as
        `PRECISIONS[name]` takes them. logits: as `prepared` takes them. keep: the prepared graph is wanted again, and
        stays in `work` as `PREPARED`.
    """
    graph = prepared(source / "model.onnx", logits)
    if len(wanted) == 1 and not keep:
        return {name: make_precision(graph, source, work / name, name, options) for name, options in wanted.items()}
    save_onnx(graph, work / PREPARED)
    del graph  # in memory it would stand beside what is made of it
    return {
        name: make_precision(read_graph(work / PREPARED), source, work / name, name, options)
        for name, options in wanted.items()
    }


def make_precision(graph: onnx.ModelProto, source: Path, folder: Path, name: str, options: Mapping[str, Any]) -> Path:
    """Writes a folder that an ORTModel loads, and returns it.

    Args:
        graph: as `prepared` makes it; it is changed. source: folder of the fp32 export. name, options: of `PRECISIONS`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in source.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    PRECISIONS[name](graph, folder / "model.onnx", **options)
    return folder


def _left(graph: onnx.ModelProto, high: Collection[str]) -> tuple[list[str], set[str]]:
    """What stays as it is: the names of products, and of tables that rows are gathered from."""
    nodes = nodes_of(graph, high)
    tables = {node.input[0] for node in nodes if node.op_type == "Gather"}
    return [node.name for node in nodes if node.op_type != "Gather"], tables


def _gemms_to_matmuls(graph: onnx.ModelProto) -> None:
    """Writes Gemm, as gpt2's linears are exported, as products that all quantizers know, in place."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    turned = [node for node in graph.graph.node if node.op_type == "Gemm" and attribute_of(node, "transB", 0)]
    bring_in(graph, {node.input[1] for node in turned})
    model = ONNXModel(graph)
    model.replace_gemm_with_matmul()
    model.topological_sort()

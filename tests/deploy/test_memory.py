"""A file of sparse layers needs little memory also where it is loaded without our kernels."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from optimum_slim.deploy.benchmark import resident_bytes
from optimum_slim.deploy.export import export_folder
from optimum_slim.deploy.precision import PRECISIONS, prepared
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.tasks.text_classification import TextClassification
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude


def exported(folder, pattern=None):
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=6, architectures=["BertForSequenceClassification"])
    model = BertForSequenceClassification(config).eval()
    if pattern:
        SparsifyMagnitude(ratio=0.9, pattern=pattern).apply(model)
    return export_folder(model, TextClassification, folder), sparsity_in(model.config)


@pytest.mark.slow
def test_without_kernels_it_takes_at_most_twice_a_dense_session(tmp_path):
    folder, _ = exported(tmp_path / "dense")
    PRECISIONS["int8-dynamic"](prepared(folder / "model.onnx"), tmp_path / "int8.onnx")
    PRECISIONS["int8-rows"](prepared(folder / "model.onnx"), tmp_path / "rows.onnx")
    dense = resident_bytes(tmp_path / "int8.onnx", 1, 128)
    assert resident_bytes(tmp_path / "rows.onnx", 1, 128, kernels=False) <= 2 * dense
    for pattern in ("unstructured", "4x1", "4x2", "4x4"):
        folder, patterns = exported(tmp_path / pattern, pattern)
        PRECISIONS["int8-rows"](prepared(folder / "model.onnx"), tmp_path / f"{pattern}.onnx", None, patterns)
        assert resident_bytes(tmp_path / f"{pattern}.onnx", 1, 128, kernels=False) <= 2 * dense, pattern
        assert resident_bytes(tmp_path / f"{pattern}.onnx", 1, 128) <= dense, pattern

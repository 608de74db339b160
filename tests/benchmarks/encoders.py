"""Sparse encoders end to end, against ONNX Runtime's best int8: through stock ORTModels, kernels registered or not.

python tests/benchmarks/encoders.py --minilm FOLDER [--tokens 128] [--threads 1,2] [--json F]
python tests/benchmarks/encoders.py --openvino ov/bin/python --deepsparse ds/bin/python ..      (see peer.py)

Weights are pruned in one shot by magnitude, without training: speed and size are measured, not quality. BERT 6x768 has
random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from optimum.onnxruntime import ORTModelForSequenceClassification
from peer import NAMES, Peer, random_text
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

import optimum_slim
from optimum_slim.deploy.baseline import optimum_int8
from optimum_slim.deploy.benchmark import in_turns, speedup
from optimum_slim.deploy.export import export_folder, onnx_bytes
from optimum_slim.deploy.machine import environment, session_options
from optimum_slim.deploy.precision import PRECISIONS, int8_rows, prepared
from optimum_slim.kernels.library import isa
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.tasks.text_classification import TextClassification
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude

PATTERNS = (("4x4", 0.8), ("4x4", 0.9), ("4x1", 0.8), ("4x1", 0.9), ("unstructured", 0.9))
ROUNDS = 15
SECONDS = 0.05  # of repeated runs in a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", help="folder of a MiniLM classifier")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--openvino", help="the Python of an environment with OpenVINO and NNCF")
    parser.add_argument("--deepsparse", help="the Python of an environment with DeepSparse 1.8")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for model_name in ("bert-6x768", *(["minilm"] if arguments.minilm else [])):
            folders = make_folders(model_name, arguments.minilm, root / model_name)
            peers = peer_files(model_name, arguments, folders["fp32"])
            for threads in map(int, arguments.threads.split(",")):
                rows += [{"model": model_name} | row for row in measure(folders, peers, arguments.tokens, threads)]
    machine = environment() | {"isa": isa()}
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": machine, "rows": rows}, indent=1) + "\n")


def make_folders(name: str, minilm: str | None, root: Path) -> dict[str, Path]:
    """Folders by what is measured: fp32, Optimum's int8, ONNX Runtime's with the best settings, ours on stock operators
    (its graph is rewritten, so it is faster), ours with dense rows, and each pattern."""
    folders = {"fp32": export_folder(build(name, minilm), TextClassification, root / "fp32")}
    folders["optimum-int8"] = optimum_int8(folders["fp32"], root / "optimum-int8")
    folders["ort-int8"] = beside(folders["fp32"], root / "ort-int8")
    quantize_dynamic(
        folders["fp32"] / "model.onnx",
        folders["ort-int8"] / "model.onnx",
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    for label, make in (("int8-dynamic", PRECISIONS["int8-dynamic"]), ("rows-dense", int8_rows)):
        folders[label] = beside(folders["fp32"], root / label)
        make(prepared(folders["fp32"] / "model.onnx"), folders[label] / "model.onnx")
    for pattern, ratio in PATTERNS:
        model = build(name, minilm)
        SparsifyMagnitude(ratio=ratio, pattern=pattern).apply(model)
        source = export_folder(model, TextClassification, root / "source")
        label = f"{pattern} {ratio}"
        folders[label] = beside(source, root / label)
        int8_rows(prepared(source / "model.onnx"), folders[label] / "model.onnx", None, sparsity_in(model.config))
    return folders


def build(name: str, minilm: str | None) -> PreTrainedModel:
    if name == "minilm":
        return optimum_slim.load_model(str(minilm))
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=6, architectures=["BertForSequenceClassification"])
    return BertForSequenceClassification(config).eval()


def beside(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return folder


def peer_files(name: str, arguments: argparse.Namespace, fp32: Path) -> dict[str, Peer]:
    """DeepSparse wants products as operators of int8 (QOperator, static) in ONNX opset 14."""
    peers = {}
    if arguments.openvino:
        peers["OpenVINO int8"] = Peer("openvino", arguments.openvino, fp32 / "model.onnx")
    if arguments.deepsparse:
        for share in (0.0, 0.9):
            model = build(name, arguments.minilm)
            if share:
                SparsifyMagnitude(ratio=share).apply(model)
            source, target = fp32.parent / "opset14.onnx", fp32.parent / f"deepsparse-{share}.onnx"
            text = tuple(torch.from_numpy(values) for values in random_text(arguments.tokens, 0).values())
            torch.onnx.export(model, text, source, input_names=NAMES, output_names=["logits"], opset_version=14,
                              dynamo=False)  # fmt: skip
            quantize_static(source, target, RandomTexts(arguments.tokens), QuantFormat.QOperator,
                            op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)  # fmt: skip
            label = f"DeepSparse int8, {f'unstructured {share}' if share else 'dense'}"
            peers[label] = Peer("deepsparse", arguments.deepsparse, target)
    return peers


class RandomTexts(CalibrationDataReader):
    def __init__(self, tokens: int):
        self.texts = iter([random_text(tokens, seed) for seed in range(8)])

    def get_next(self) -> dict[str, Any]:
        return next(self.texts, {})


def measure(folders: dict[str, Path], peers: dict[str, Peer], tokens: int, threads: int) -> list[dict[str, Any]]:
    """Interleaved medians of whole ORTModel calls, with our kernels, and for SlimLinear also without; of peers those of
    their own interface."""
    runs = {name: (folder, True) for name, folder in folders.items()}
    runs |= {f"{name}, no kernels": (folders[name], False) for name in ("rows-dense", "4x4 0.9")}
    models = {
        name: ORTModelForSequenceClassification.from_pretrained(folder, session_options=session_options(threads, ours))
        for name, (folder, ours) in runs.items()
    }
    ids = torch.randint(1000, 5000, (1, tokens), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    calls: dict[str, Callable[[], Any]] = {name: partial(model, **inputs) for name, model in models.items()}
    with ExitStack() as stack:
        calls |= {name: stack.enter_context(peer.running(tokens, threads)) for name, peer in peers.items()}
        rounds = in_turns(calls, ROUNDS, SECONDS, "timing encoders")
    best = min(("optimum-int8", "ort-int8"), key=lambda name: statistics.median(rounds[name]))
    found = []
    files = {name: folder / "model.onnx" for name, (folder, _) in runs.items()}
    files |= {name: peer.file for name, peer in peers.items()}
    for name, file in files.items():
        row = {
            "what": name,
            "threads": threads,
            "tokens": tokens,
            "ms": round(statistics.median(rounds[name]), 3),
            "mb": round(onnx_bytes(file) / 1e6, 1),
            "ratio_vs_int8": speedup(rounds[best], rounds[name])["median"],
            "ratio_vs_fp32": speedup(rounds["fp32"], rounds[name])["median"],
            "int8": best,
        }
        print(
            "{what:<34}{threads} threads {ms:8.3f} ms {mb:7.1f} MB {ratio_vs_int8:6.2f}x int8".format(**row), flush=True
        )
        found.append(row)
    return found


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(3)
    main()

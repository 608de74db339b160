"""Memory and time of a step that has one block of a decoder in memory at a time, and of the files that are made of it
then, by size of the model.

python tests/benchmarks/streaming.py --work W --json F
python tests/benchmarks/streaming.py --work W --models 135M --techniques sparsify.sparsegpt --texts 8 --precisions

The models are Llamas of random weights, in bfloat16 shards as they are published, which are made in W and removed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

# Sizes of SmolLM2-135M, SmolLM2-360M and TinyLlama-1.1B.
MODELS: dict[str, dict[str, Any]] = {
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "350M": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
             "num_key_value_heads": 5, "vocab_size": 49152, "tie_word_embeddings": True},
    "1.1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
             "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False},
}  # fmt: skip
TECHNIQUES: dict[str, dict[str, Any]] = {
    "sparsify.wanda": {"ratio": 0.5},
    "sparsify.sparsegpt": {"ratio": 0.5},
    "prune.ffn": {"ratio": 0.5},
    "quantize.weights": {"method": "gptq"},
}
EXPORT = "fp32"  # of which the other precisions are made
PRECISIONS = ("int8-rows", "int8-weights", "int4-weights")
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder for models")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--techniques", nargs="*", choices=TECHNIQUES, default=list(TECHNIQUES))
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--texts", type=int, default=4, help="to calibrate on")
    parser.add_argument("--tokens", type=int, default=128, help="of a text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="rows are added to those that it holds")
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    for model in arguments.models:
        folder = arguments.work / model
        if not folder.exists():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                process.submit(make_model, folder, MODELS[model]).result()
        files = [EXPORT, *arguments.precisions] if arguments.precisions else []
        parts = [("technique", measured, name) for name in arguments.techniques]
        parts += [("precision", written, name) for name in files]
        for kind, part, name in parts:
            # A process of its own for each, so that its peak of memory is its own too.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                found = process.submit(part, folder, name, arguments).result()
            rows.append({"model": model, kind: name, **found})
            print({key: value for key, value in rows[-1].items() if key != "cpu_seconds"}, flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(exported(folder), ignore_errors=True)
        shutil.rmtree(folder)


def make_model(folder: Path, sizes: dict[str, Any]) -> None:
    """Writes a Llama of random weights shard by shard; one part at a time is in memory."""
    import torch
    from transformers import LlamaConfig

    from optimum_slim.model.checkpoint import empty_model
    from optimum_slim.model.shards import shard_name, write_index, write_shard
    from optimum_slim.model.streamed import parts_of

    config = LlamaConfig(**sizes, architectures=["LlamaForCausalLM"], max_position_embeddings=2048)
    model = empty_model(config)
    model.tie_weights()
    parts, shards = parts_of(model), {}
    generator = torch.Generator().manual_seed(SEED)
    folder.mkdir(parents=True)
    for number, names in enumerate(parts.values(), start=1):
        tensors = {}
        for name in names:
            shape = model.get_parameter(name).shape
            drawn = torch.randn(shape, generator=generator, dtype=torch.float32) * config.initializer_range
            tensors[name] = (drawn if len(shape) > 1 else torch.ones(shape)).to(torch.bfloat16)
        write_shard(folder / shard_name(number, len(parts)), tensors)
        shards[shard_name(number, len(parts))] = {name: 2 * one.numel() for name, one in tensors.items()}
    write_index(folder, shards)
    config.save_pretrained(folder)


def measured(folder: Path, technique: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One step of a streamed model, written as a run writes it: bytes and seconds."""
    import torch

    from optimum_slim.model import turns
    from optimum_slim.model.checkpoint import load_model, save_model
    from optimum_slim.report.report import parameters_of, peak_rss_bytes
    from optimum_slim.techniques import technique_class

    torch.set_num_threads(arguments.threads)
    step = technique_class(technique)(**TECHNIQUES[technique])
    generator = torch.Generator().manual_seed(SEED)
    shape = (arguments.texts, arguments.tokens)
    ids = torch.randint(0, 4096, shape, generator=generator).split(1)
    batches = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    work = folder.with_name(f"{folder.name}-step")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    model = load_model(folder, streamed=True)
    base, parameters = peak_rss_bytes(), parameters_of(model)
    turns.begin_step(model, work)
    spent, finish = [], turns.Pass.finish

    def finish_and_look(*given: Any) -> None:
        finish(*given)
        spent.append(resource.getrusage(resource.RUSAGE_SELF))

    turns.Pass.finish = finish_and_look
    begun = time.monotonic()
    step.apply(model, calibration_data=batches)
    seconds, peak = time.monotonic() - begun, peak_rss_bytes()
    save_model(model, work / "out")
    rows = turns.block_rows(model)
    shutil.rmtree(work)
    return {
        "parameters": parameters,
        "texts": arguments.texts,
        "tokens": arguments.tokens,
        "threads": arguments.threads,
        "base_rss_bytes": base,
        "peak_rss_bytes": peak,
        "peak_rss_bytes_with_saving": peak_rss_bytes(),
        "seconds": round(seconds, 1),
        "cpu_seconds": [round(one.ru_utime + one.ru_stime, 2) for one in spent],  # of the process, after each block
        "blocks": rows,
    }


def written(folder: Path, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The fp32 export of a streamed model, or a precision that is made of it: bytes and seconds."""
    import torch

    from optimum_slim.deploy.export import export_folder, onnx_bytes
    from optimum_slim.deploy.precision import make_precisions
    from optimum_slim.model.checkpoint import load_model
    from optimum_slim.report.report import parameters_of, peak_rss_bytes
    from optimum_slim.tasks import TextGeneration

    torch.set_num_threads(arguments.threads)
    model, fp32 = load_model(folder, streamed=True), exported(folder)
    base, begun = peak_rss_bytes(), time.monotonic()
    if precision == EXPORT:
        fp32.mkdir()
        made = export_folder(model, TextGeneration, fp32)
    else:
        made = make_precisions(fp32, fp32, {precision: {}}, logits="last")[precision]
    seconds, spent = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "parameters": parameters_of(model),
        "threads": arguments.threads,
        "bytes": onnx_bytes(made / "model.onnx"),
        "base_rss_bytes": base,
        "peak_rss_bytes": peak_rss_bytes(),
        "seconds": round(seconds, 1),
        "cpu_seconds_in_all": round(spent.ru_utime + spent.ru_stime, 1),
    }
    if precision != EXPORT:
        shutil.rmtree(made)
    return found


def exported(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-fp32")


if __name__ == "__main__":
    main()

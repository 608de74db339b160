"""What a decoder's perplexity and file become when its weights are rounded, by method, bits and groups: the served
file, loaded by ONNX Runtime. Cases that the JSON file has already are not run again.

python tests/benchmarks/weights.py --model M --data D --sets austen debian --json results/weights.json
python tests/benchmarks/weights.py --model M --data D --cases "gptq 4 32" "gptq 4 32 int4" "rtn 4 128 asymmetric"
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from sparsify import SEED, calibration

# Method, bits and group; asymmetric: with zero points; int4: the head and its embedding have 4 bits too.
CASES = ("none", "none int8", "none int4", "gptq 8 32", "gptq 4 32", "gptq 4 32 int4", "rtn 4 32", "awq 4 32",
         "hqq 4 32", "gptq 4 128", "rtn 4 128", "gptq 4 32 asymmetric", "rtn 4 32 asymmetric")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sets", nargs="*", default=[], help="a set is the files whose names begin so")
    parser.add_argument("--evaluation", default="test")
    parser.add_argument("--limit", type=int, default=20, help="blocks of each set to judge on")
    parser.add_argument("--tokens", type=int, default=512, help="in a block")
    parser.add_argument("--calibration", type=int, default=32, help="blocks to calibrate on, of all sets together")
    parser.add_argument("--iterations", type=int, default=50, help="of autoround")
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    for case in arguments.cases:
        row = next((row for row in rows if row["case"] == case), None)
        if row is None:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                row = process.submit(measured, arguments, case).result()
            rows.append(row)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        quality = "  ".join(f"{metric} {value:.2f}" for metric, value in row["quality"].items())
        print(f"{case:<24}{quality}  {row['file_bytes'] / 1e6:.1f} MB  {row['seconds']} s", flush=True)


def measured(arguments: argparse.Namespace, case: str) -> dict[str, Any]:
    """One row."""
    import torch
    import transformers

    from optimum_slim.data.texts import Data, load_texts
    from optimum_slim.deploy.export import export_folder, onnx_bytes
    from optimum_slim.deploy.integers import weights_on_grids
    from optimum_slim.deploy.precision import make_precisions
    from optimum_slim.deploy.verify import load_ort
    from optimum_slim.model.checkpoint import load_model, load_tokenizer
    from optimum_slim.progress import silence
    from optimum_slim.tasks import task_named
    from optimum_slim.tasks.evaluate import Evaluation

    silence()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    model, folder = load_model(arguments.model), Path(arguments.model)
    sets = {name: f"{name}.*" for name in arguments.sets}
    data = Data(source=arguments.data, sets=sets, max_length=arguments.tokens, limit=arguments.limit)
    task = task_named("auto", model.config)(model.config, load_tokenizer(folder), data, folder)
    begun, (technique, precision) = time.monotonic(), read(case, arguments)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if technique is not None:
            supplies = {"calibration_data": calibration(task, arguments), "seed": SEED, "workdir": work / "learning"}
            technique.apply(model, **{name: supplies[name] for name in technique.asks()})
        seconds = round(time.monotonic() - begun, 1)
        grids = weights_on_grids(model)
        source = export_folder(model, type(task), work / "fp32")
        del model
        options = {precision: {} if precision == "fp32" else {"grids": grids}}
        served = make_precisions(source, work / "files", options)[precision]
        evaluation = Evaluation.of(task, load_texts(data, SEED).evaluation(arguments.evaluation))
        quality = evaluation.quality(load_ort(served, type(task), arguments.threads))
        return {"case": case, "seconds": seconds, "quality": quality, "file_bytes": onnx_bytes(served / "model.onnx")}


def read(case: str, arguments: argparse.Namespace) -> tuple[Any, str]:
    """The technique, if any, and the precision of a case."""
    from optimum_slim.techniques.quantize.weights import QuantizeWeights

    method, *told = case.split()
    precision = "int4-weights" if "int4" in told else "int8-weights"
    if method == "none":
        return None, precision if told else "fp32"
    bits, size = told[0], int(told[1])
    settings = {"bits": int(bits), "group_size": size, "symmetric": "asymmetric" not in told}
    return QuantizeWeights(method=method, iterations=arguments.iterations, **settings), precision


if __name__ == "__main__":
    main()

"""Small LLMs in every precision, pruned or not: perplexity, bytes, speed and memory, with llama.cpp beside them.

python tests/benchmarks/decoders.py --model M --data D --sets austen debian --work W            judges what is missing
python tests/benchmarks/decoders.py --model M --data D --sets austen debian --work W --names "int8-rows;int8-weights"
python tests/benchmarks/decoders.py --model M --data D --sets austen debian --work W --llama lc/bin/python --gguf FILE
python tests/benchmarks/decoders.py --model M --data D --sets austen debian --work W --llama .. --gguf .. --time

Recipes stand in decoders.yaml, results in results/decoders.json, each under the hash of its recipe. W keeps the folders
that were made; `--time` times all of them, and those of llama.cpp, in turns, and wants a quiet machine. llama.cpp lives
in an environment of its own (see peer.py); the GGUF file is the same model, and is quantized anew to Q8_0 and Q4_0.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from frontier import short_hash
from peer import Peer
from sparsify import SEED, calibration, decoder_parser, evaluated

HERE = Path(__file__).parent
ORIGINAL = "fp32"
LLAMA = ("Q8_0", "Q4_0")
CONTEXTS = "128,1,16,1024"  # tokens
ROUNDS, SECONDS = 9, 0.1  # of turns, and of repeated runs in a turn


def main() -> None:
    parser = decoder_parser(str(__doc__), evaluation="validation", limit=20)
    parser.add_argument("--work", type=Path, required=True, help="where the folders that are made stay")
    parser.add_argument("--names", help="recipes, with ; between them; default: all")
    parser.add_argument("--llama", help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--gguf", type=Path, help="the model as llama.cpp reads it")
    parser.add_argument("--time", action="store_true", help="time all that was made instead of making any")
    parser.add_argument("--contexts", default=CONTEXTS, help="to time, in tokens; what is known of others stays")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "decoders.json")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {"rows": {}}
    recipes = yaml.safe_load((HERE / "decoders.yaml").read_text(encoding="utf-8"))
    names = arguments.names.split(";") if arguments.names else list(recipes)
    if arguments.time:
        timed(arguments, found, names)
    else:
        for name in names:
            judge(arguments, name, recipes[name], found)
        for kind in LLAMA if arguments.llama else ():
            judge_llama(arguments, kind, found)
    keep(arguments, found)


def keep(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def key_of(arguments: argparse.Namespace, recipe: dict[str, Any]) -> str:
    how = {name: vars(arguments)[name] for name in ("sets", "evaluation", "limit", "tokens", "calibration")}
    told = [recipe, Path(arguments.model).name, how]
    return short_hash(told)


def judge(arguments: argparse.Namespace, name: str, recipe: dict[str, Any], found: dict[str, Any]) -> None:
    """Makes and judges what a recipe leads to, unless that is known."""
    key = key_of(arguments, recipe)
    if found["rows"].get(name, {}).get("key") != key:
        # Processes of their own, so that a peak of memory is that of making the model alone.
        for part in (made, judged):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                row = process.submit(part, arguments, recipe, key).result()
            found["rows"][name] = {**found["rows"].get(name, {}), "key": key, "recipe": recipe, **row}
        keep(arguments, found)
    print(told(name, found["rows"][name]), flush=True)


def made(arguments: argparse.Namespace, recipe: dict[str, Any], key: str) -> dict[str, Any]:
    """Applies the steps and writes the folder that is served: with what time and memory."""
    import torch
    import transformers

    from optimum_slim.company import placed
    from optimum_slim.deploy.choose import choose_precision
    from optimum_slim.deploy.export import export_folder, onnx_bytes
    from optimum_slim.model.checkpoint import load_model
    from optimum_slim.planning import planned
    from optimum_slim.progress import silence
    from optimum_slim.recipe import read_recipe
    from optimum_slim.report.report import peak_rss_bytes
    from optimum_slim.supplies import Supplies
    from optimum_slim.workspace import Workspace

    silence()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    data = {"source": arguments.data, "max_length": arguments.tokens, "evaluation": arguments.evaluation}
    data |= {"sets": {name: f"{name}.*" for name in arguments.sets}} if arguments.sets else {}
    deploy = {"max_quality_loss": None, **recipe["deploy"]}
    whole = {"slim": 1, "model": arguments.model, "seed": SEED, "data": data, **recipe, "deploy": deploy}
    plan = planned(read_recipe(whole))
    shutil.rmtree(arguments.work / key, ignore_errors=True)  # what a run left that broke off before it was judged
    begun = time.monotonic()
    with Workspace(arguments.work / key, plan, overwrite=True, restart=True) as work:
        model, supplies = placed(load_model(plan.folder), plan), Supplies(plan, work)
        for step in plan.steps:
            given = supplies.asked_by(step)
            if "calibration_data" in given:
                given["calibration_data"] = calibration(plan.task, arguments)
            step.technique.apply(model, **given)
        steps_seconds, steps_peak = time.monotonic() - begun, peak_rss_bytes()
        fp32 = export_folder(model.cpu(), type(plan.task), work.scratch("fp32"))
        chosen = choose_precision(
            model, fp32, work.kept("precision"), plan.recipe.deploy, plan.validation, True,
            lambda: calibration(plan.task, arguments),
        )  # fmt: skip
        work.finish(chosen.folder)
    return {
        "bytes": onnx_bytes(arguments.work / key / "model.onnx"),
        "seconds": round(steps_seconds, 1),
        "peak_rss_bytes": steps_peak,
    }


def judged(arguments: argparse.Namespace, recipe: dict[str, Any], key: str) -> dict[str, Any]:
    """The figures of the loaded ORT model, and how far its odds are from the fp32 file's."""
    import transformers

    from optimum_slim.deploy.verify import load_ort
    from optimum_slim.progress import silence

    silence()
    transformers.logging.set_verbosity_error()
    task, evaluation = evaluated(arguments)
    model = load_ort(arguments.work / key, type(task), arguments.threads)
    original = arguments.work / key_of(arguments, {"deploy": {"precision": "fp32"}})
    if not original.exists():
        return {"quality": evaluation.quality(model)}
    return {"quality": evaluation.compared(model, load_ort(original, type(task), arguments.threads))}


def judge_llama(arguments: argparse.Namespace, kind: str, found: dict[str, Any]) -> None:
    """llama.cpp's perplexity on the same blocks, unless that is known."""
    name = f"llama.cpp {kind}"
    key = key_of(arguments, {"llama.cpp": kind})
    if found["rows"].get(name, {}).get("key") != key:
        _, evaluation = evaluated(arguments)
        quality = {}
        for of_set, examples in evaluation.sets.items():
            blocks = arguments.work / "blocks.json"
            blocks.write_text(json.dumps([example["input_ids"] for example in examples]))
            nats = sum(json.loads(llama(arguments, "llama-nll", llama_file(arguments, kind), blocks, 1)))
            tokens = sum(len(example["input_ids"]) - 1 for example in examples)
            quality[f"perplexity/{of_set}" if of_set else "perplexity"] = math.exp(nats / tokens)
        size = llama_file(arguments, kind).stat().st_size
        found["rows"][name] = {"key": key, "bytes": size, "quality": quality}
        keep(arguments, found)
    print(told(name, found["rows"][name]), flush=True)


def llama_file(arguments: argparse.Namespace, kind: str) -> Path:
    path = arguments.work / f"{kind}.gguf"
    if not path.exists():
        llama(arguments, "llama-quantize", arguments.gguf, path, kind)
    return path


def llama(arguments: argparse.Namespace, *command: Any) -> str:
    words = [arguments.llama, HERE / "peer.py", *command]
    return subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True).stdout


def timed(arguments: argparse.Namespace, found: dict[str, Any], names: list[str]) -> None:
    """Medians of prefill and decode at each length of context, all files in turns, and ratios to each other; and the
    memory of a process that serves the file. What is found is kept after each."""
    from optimum_slim.deploy.benchmark import in_turns, resident_bytes, speedup
    from optimum_slim.deploy.machine import environment
    from optimum_slim.kernels.library import isa

    rows = found["rows"]
    files = {name: arguments.work / rows[name]["key"] / "model.onnx" for name in names if name in rows}
    files = {name: file for name, file in files.items() if file.exists()}
    llama = [f"llama.cpp {kind}" for kind in LLAMA if arguments.llama]
    times = found.setdefault("times", {})
    for name in (*files, *llama):
        times.setdefault(name, {"points": []})
        if name in files:
            times[name]["rss_bytes"] = resident_bytes(files[name], 1, 128)
    times["environment"] = environment() | {"isa": isa(), "threads_of_runs": arguments.threads}
    for tokens in map(int, arguments.contexts.split(",")):
        for phase in ("prefill", "decode"):
            with ExitStack() as stack:
                runs: dict[str, Callable[[], Any]] = {
                    name: one_run(file, phase, tokens, arguments.threads) for name, file in files.items()
                }
                for name, kind in zip(llama, LLAMA, strict=False):
                    peer = Peer(f"llama-{phase}", arguments.llama, llama_file(arguments, kind))
                    runs[name] = stack.enter_context(peer.running(tokens, arguments.threads))
                rounds = in_turns(runs, ROUNDS, SECONDS, f"timing {phase} {tokens}")
            for name, seconds in rounds.items():
                point = {"phase": phase, "tokens": tokens, "ms": round(statistics.median(seconds), 3)}
                point |= {f"over {other}": speedup(rounds[other], seconds)["median"] for other in rounds}
                points = times[name]["points"]
                points[:] = [one for one in points if (one["phase"], one["tokens"]) != (phase, tokens)] + [point]
                print(f"{phase:<8}{tokens:>5}  {name:<40}{point['ms']:9.3f} ms", flush=True)
            keep(arguments, found)


def one_run(file: Path, phase: str, tokens: int, threads: int) -> Callable[[], Any]:
    import onnxruntime

    from optimum_slim.deploy.benchmark import feeds, with_cache
    from optimum_slim.deploy.machine import session_options

    session = onnxruntime.InferenceSession(str(file), session_options(threads))
    inputs = feeds(session, phase, 1, tokens)
    return partial(session.run, None, with_cache(session, inputs, 1, tokens) if phase == "decode" else inputs)


def told(name: str, row: dict[str, Any]) -> str:
    quality = "  ".join(f"{metric} {value:.3f}" for metric, value in row["quality"].items())
    return f"{name:<40}{row['bytes'] / 1e6:7.1f} MB  {quality}"


if __name__ == "__main__":
    main()

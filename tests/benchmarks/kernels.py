"""How fast SlimLinear is against ONNX Runtime's own int8 and float products of the same shape, in turns.

python tests/benchmarks/kernels.py --tokens 1,128 --threads 1 --patterns dense,4x1:0.8,unstructured:0.9 --json F

With one thread also the shares of the CPU's peaks, which peaks.cpp measures where there is a C++ compiler: the products
of kept weights, of all products of bytes that a core can do; and the kept weights, of all bytes that it can read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper
from onnx.onnx_pb import ModelProto, NodeProto, TensorProto

from optimum_slim.deploy.benchmark import in_turns, speedup
from optimum_slim.deploy.machine import environment, session_options
from optimum_slim.deploy.measure import random_weight
from optimum_slim.kernels.function import DOMAIN, VERSION, slim_functions, slim_node
from optimum_slim.kernels.library import isa, library_path
from optimum_slim.kernels.packing import pack
from optimum_slim.kernels.pattern import PATTERNS

SHAPES = "384x384,384x1536,1536x384,768x768,768x3072,3072x768,2048x2048,2048x8192"
CASES = "dense,4x1:0.8,4x1:0.9,4x2:0.8,4x2:0.9,4x4:0.8,4x4:0.9,unstructured:0.5,unstructured:0.8,unstructured:0.9,2:4"
LINE = (
    "{pattern:>12} {sparsity:<5}{group_size!s:>5} {tokens:>4} rows {threads} threads {k:>5} x {n:<5}"
    "{ms:9.4f} ms {ratio_vs_int8:6.2f} int8 {ratio_vs_fp32:6.2f} fp32"
)
ROUNDS = 9
SECONDS_OF_ROUND = 0.006

# A layer that is run alone stays in the nearest cache, and the cost of Session.run hides its own: with few rows this
# many weights are spread over equal layers.
WEIGHTS_OF_FEW_ROWS = 4_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,16,128,384")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--patterns", default=CASES, help="names, or name:sparsity, or name:sparsity:group_size")
    parser.add_argument("--shapes", default=SHAPES, help="inputs x outputs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="where the rows go")
    arguments = parser.parse_args()
    if library_path() is None:
        raise SystemExit("the kernels' library is needed")
    rows: list[dict[str, Any]] = []
    peak = peaks()
    threads = [int(count) for count in arguments.threads.split(",")]
    for tokens in map(int, arguments.tokens.split(",")):
        for shape in arguments.shapes.split(","):
            k, n = map(int, shape.split("x"))
            for row in measure(arguments.patterns.split(","), tokens, threads, k, n, arguments.rounds):
                rows.append(row)
                print(LINE.format(**row), flush=True)
    # What else runs on a machine only ever lowers a peak.
    peak |= {key: max(peak[key], value) for key, value in peaks().items() if key in ("gop_s", "gb_s")}
    for row in rows:
        if peak and row["threads"] == 1:
            row |= {f"share_of_{key}": round(row[key] / peak[key], 3) for key in ("gop_s", "gb_s")}
    print_means(rows)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"environment": environment() | {"isa": isa()}, "peaks": peak, "rows": rows}, indent=2) + "\n",
            encoding="utf-8",
        )


def measure(cases: list[str], tokens: int, threads: list[int], k: int, n: int, rounds: int) -> Iterator[dict[str, Any]]:
    """One row for each case and number of threads; all of them and both rivals take turns in every round."""
    rng = np.random.default_rng(0)
    copies = max(1, WEIGHTS_OF_FEW_ROWS // (k * n)) if tokens < 16 else 1
    x = rng.standard_normal((tokens, k), np.float32)
    models = {"int8": int8_model(rng, k, n, copies), "fp32": float_model(rng, k, n, copies)}
    models |= {case: slim_model(rng, case, k, n, copies) for case in cases}
    runs = {(name, count): runner(model, x, count) for name, model in models.items() for count in threads}
    times = in_turns(runs, rounds, SECONDS_OF_ROUND, f"timing {tokens} rows, {k}x{n}")
    for count in threads:
        for case in cases:
            name, sparsity, group_size = parsed(case)
            own = times[case, count]
            seconds = statistics.median(own) / 1e3 / copies
            yield {
                "pattern": name,
                "sparsity": sparsity,
                "group_size": group_size,
                "tokens": tokens,
                "threads": count,
                "k": k,
                "n": n,
                "ms": round(seconds * 1e3, 5),
                "ratio_vs_int8": speedup(times["int8", count], own)["median"],
                "ratio_vs_fp32": speedup(times["fp32", count], own)["median"],
                "ratio_vs_fewest_threads": speedup(times[case, threads[0]], own)["median"],
                "gop_s": round(2e-9 * tokens * k * n * (1 - sparsity) / seconds, 1),
                "gb_s": round(1e-9 * k * n * (1 - sparsity) / seconds, 2),
            }


def peaks() -> dict[str, Any]:
    """Of one core, `gop_s` from registers and `gb_s` from where the weights of few rows lie; empty without compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peaks"
        source = Path(__file__).with_name("peaks.cpp")
        flags = ["-O2", "-std=c++17", "-march=native", "-Wno-psabi", "-Wno-ignored-attributes"]
        if subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=False).returncode:
            return {}
        command = [str(program), str(WEIGHTS_OF_FEW_ROWS)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def parsed(case: str) -> tuple[str, float, int | None]:
    name = next(name for name in sorted(PATTERNS, key=len, reverse=True) if case.split(":0")[0] == name)
    rest = case.removeprefix(name).strip(":").split(":")
    sparsity = 0.5 if name == "2:4" else float(rest[0] or 0)
    return name, sparsity, int(rest[1]) if len(rest) > 1 else None


def runner(model: ModelProto, x: np.ndarray, threads: int) -> Callable[[], Any]:
    """Input and outputs stay where they are, as between the nodes of a model: nothing is copied to Python."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(threads))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    for output in session.get_outputs():
        y = np.empty((len(x), output.shape[1]), np.float32)
        binding.bind_ortvalue_output(output.name, onnxruntime.OrtValue.ortvalue_from_numpy(y))
    return lambda: session.run_with_iobinding(binding)


def slim_model(rng: np.random.Generator, case: str, k: int, n: int, copies: int) -> ModelProto:
    name, sparsity, group_size = parsed(case)
    groups = 1 if group_size is None else k // group_size

    def layer(i: int) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
        gaps, values = pack(random_weight(rng, k, n, name, sparsity), name)
        tensors = {
            f"gaps{i}": gaps,
            f"values{i}": values,
            f"scale{i}": rng.random((n, groups), np.float32) * np.float32(1e-3),
            f"bias{i}": rng.standard_normal(n, np.float32),
        }
        return [slim_node(["x", *tensors], f"y{i}", k, n, name, group_size=group_size)], tensors

    return stacked(layer, k, n, copies)


def int8_model(rng: np.random.Generator, k: int, n: int, copies: int) -> ModelProto:
    def layer(i: int) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
        tensors = {
            f"weight{i}": rng.integers(-127, 128, (k, n)).astype(np.int8),
            f"scale{i}": rng.random(n, np.float32) * np.float32(1e-3),
            f"bias{i}": rng.standard_normal(n, np.float32),
        }
        inputs = ["x", f"weight{i}", f"scale{i}", "", f"bias{i}"]
        return [helper.make_node("DynamicQuantizeMatMul", inputs, [f"y{i}"], domain="com.microsoft")], tensors

    return stacked(layer, k, n, copies)


def float_model(rng: np.random.Generator, k: int, n: int, copies: int) -> ModelProto:
    def layer(i: int) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
        tensors = {
            f"weight{i}": rng.standard_normal((k, n), np.float32),
            f"bias{i}": rng.standard_normal(n, np.float32),
        }
        product = helper.make_node("MatMul", ["x", f"weight{i}"], [f"product{i}"])
        return [product, helper.make_node("Add", [f"product{i}", f"bias{i}"], [f"y{i}"])], tensors

    return stacked(layer, k, n, copies)


def stacked(
    layer: Callable[[int], tuple[list[NodeProto], dict[str, np.ndarray]]],
    k: int,
    n: int,
    copies: int,
) -> ModelProto:
    """A model of equal layers side by side, all fed from x."""
    nodes: list[NodeProto] = []
    tensors: dict[str, np.ndarray] = {}
    for i in range(copies):
        more_nodes, more_tensors = layer(i)
        nodes += more_nodes
        tensors |= more_tensors
    ours = {node.op_type for node in nodes if node.domain == DOMAIN}
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", k])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["rows", n]) for i in range(copies)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    imports = [
        helper.make_opsetid("", 18),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid(DOMAIN, VERSION),
    ]
    return helper.make_model(graph, opset_imports=imports, functions=slim_functions(ours), ir_version=9)


def print_means(rows: list[dict[str, Any]]) -> None:
    """Geometric means over the shapes."""
    keys = ("pattern", "sparsity", "group_size", "tokens", "threads")
    print(f"\n{library_path()}, {isa()}: geometric means over shapes")
    for case in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        of_case = [row for row in rows if tuple(row[key] for key in keys) == case]
        means = {"ratio_vs_int8": "int8", "ratio_vs_fp32": "fp32", "ratio_vs_fewest_threads": "by threads",
                 "share_of_gop_s": "of products", "share_of_gb_s": "of reading"}  # fmt: skip
        told = [
            f"{name} {statistics.geometric_mean(row[key] for row in of_case):.2f}"
            for key, name in means.items()
            if key in of_case[0]
        ]
        print(*(f"{key} {value}" for key, value in zip(keys, case, strict=True)), *told)


if __name__ == "__main__":
    main()

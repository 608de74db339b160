"""What a decoder's perplexity becomes when weights turn zero in one shot, without training, by technique and pattern.

python tests/benchmarks/sparsify.py --model M --data D --sets austen debian --limit 10 --json F
python tests/benchmarks/sparsify.py --model M --data D --techniques wanda --ratios 0.5 --patterns 4x1 2:4
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

TECHNIQUES, RATIOS = ("magnitude", "wanda", "sparsegpt"), (0.3, 0.5)
PATTERNS = ("unstructured", "2:4", "4x1", "4x2", "4x4")
SEED = 0


def main() -> None:
    parser = decoder_parser(str(__doc__), evaluation="test", limit=10)
    parser.add_argument("--techniques", nargs="+", default=TECHNIQUES)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--allocation", default="uniform")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for case in (None, *cases(arguments)):
        # A process of its own for each, so that its peak of memory is its own too.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            rows.append(process.submit(measured, arguments, case).result())
        print(told(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def decoder_parser(description: str, evaluation: str, limit: int) -> argparse.ArgumentParser:
    """The options of a script that calibrates a decoder and judges it on texts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sets", nargs="*", default=[], help="a set is the files whose names begin so")
    parser.add_argument("--evaluation", default=evaluation)
    parser.add_argument("--limit", type=int, default=limit, help="blocks of each set to judge on")
    parser.add_argument("--tokens", type=int, default=512, help="in a block")
    parser.add_argument("--calibration", type=int, default=64, help="blocks to calibrate on, of all sets together")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def evaluated(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The task, and the texts to judge on."""
    from optimum_slim.data.texts import Data, load_texts
    from optimum_slim.model.checkpoint import load_config, load_tokenizer
    from optimum_slim.tasks import task_named
    from optimum_slim.tasks.evaluate import Evaluation

    folder = Path(arguments.model)
    config, sets = load_config(folder), {name: f"{name}.*" for name in arguments.sets}
    data = Data(source=arguments.data, sets=sets, max_length=arguments.tokens, limit=arguments.limit)
    task = task_named("auto", config)(config, load_tokenizer(folder), data, folder)
    return task, Evaluation.of(task, load_texts(data, SEED).evaluation(arguments.evaluation))


def cases(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for technique in arguments.techniques:
        for pattern in arguments.patterns:
            for ratio in arguments.ratios if pattern != "2:4" else [0.5]:
                allocation = arguments.allocation if pattern != "2:4" else "uniform"
                settings = {"ratio": ratio, "pattern": pattern, "allocation": allocation}
                yield {"technique": f"sparsify.{technique}", "settings": settings}


def measured(arguments: argparse.Namespace, case: dict[str, Any] | None) -> dict[str, Any]:
    """One row: the model as it is, or after one technique."""
    import torch
    import transformers

    from optimum_slim.model.checkpoint import load_model
    from optimum_slim.model.sparsity import sparse_weights
    from optimum_slim.progress import silence
    from optimum_slim.report.report import peak_rss_bytes
    from optimum_slim.techniques import technique_class

    silence()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    task, evaluation = evaluated(arguments)
    row: dict[str, Any] = {"technique": "none", "settings": {}, "seconds": 0.0, "zeros": 0.0}
    if case is not None:
        technique = technique_class(case["technique"])(**case["settings"])
        supplies = [calibration(task, arguments)] if technique.asks() else []
        begun = time.monotonic()
        technique.apply(model, *supplies)
        weights = sparse_weights(model).values()
        zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
        row = {**case, "seconds": round(time.monotonic() - begun, 1), "zeros": round(zeros, 4)}
    row["peak_rss_bytes"] = peak_rss_bytes()
    row["quality"] = evaluation.quality(model)
    return row


def calibration(task: Any, arguments: argparse.Namespace) -> list[Any]:
    """Batches of blocks from train, as many of each set: one with long texts would hardly be drawn otherwise."""
    from optimum_slim.data.texts import Data, load_texts

    sources = [path for name in arguments.sets for path in sorted(Path(arguments.data).glob(f"{name}.train.*"))]
    blocks = []
    for source in sources or [arguments.data]:
        rows = load_texts(Data(source=str(source)), SEED).train
        assert rows is not None, f"{source} has no train split"
        count = arguments.calibration // max(1, len(sources))
        blocks += task.examples(rows.shuffle(seed=SEED), count, labelled=False)
    return [task.collate(blocks[start : start + 8]) for start in range(0, len(blocks), 8)]


def told(row: dict[str, Any]) -> str:
    name = " ".join([row["technique"], *map(str, row["settings"].values())])
    quality = "  ".join(f"{metric} {value:.1f}" for metric, value in row["quality"].items())
    return f"{name:<44}{quality}  zeros {row['zeros']:.3f}  {row['seconds']} s  {row['peak_rss_bytes'] / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()

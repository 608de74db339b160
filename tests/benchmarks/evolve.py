"""Zeros that move against zeros that stay, from random weights: a small decoder learns the next word of texts.

python tests/benchmarks/evolve.py --model M --data D --set debian [--seeds 0,1,2] [--names "dense;SET"]

The embeddings are those of M and stay; its first blocks are drawn anew by the seed and learn, each case from the same
weights on the same batches. 80 % of their weights are zero from the first step to the last, but for `dense`. Results
that results/evolve.json has already are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from frontier import points_lost, short_hash

HERE = Path(__file__).parent
RANDOM = {"start": "random", "ratio": 0.8}
CASES: dict[str, dict[str, Any] | None] = {  # name: settings of sparsify.evolve
    "dense": None,
    "fixed random zeros": RANDOM | {"grow": "random", "zeta": 0.0},
    "SET": RANDOM | {"grow": "random", "every": 50},
    "RigL": RANDOM | {"grow": "gradient", "every": 50},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--set", required=True, help="the files whose names begin so")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--texts", type=int, default=2000, help="blocks to learn from, again and again")
    parser.add_argument("--tokens", type=int, default=128, help="in a block")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, default=200, help="blocks of validation to judge on")
    parser.add_argument("--names", help="cases, with ; between them; default: all")
    parser.add_argument("--seeds", default="0,1,2", type=lambda told: [int(seed) for seed in told.split(",")])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "evolve.json")
    arguments = parser.parse_args()
    rows: dict[str, Any] = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
    for seed in arguments.seeds:
        for name in arguments.names.split(";") if arguments.names else CASES:
            runs, key = rows.setdefault(name, {"runs": {}})["runs"], key_of(arguments, name, seed)
            if runs.get(str(seed), {}).get("key") != key:
                runs[str(seed)] = {"key": key, **trained(arguments, CASES[name], seed)}
                for row in rows.values():
                    row["points_lost"] = points_lost(row, rows["dense"])
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(told(name, seed, runs[str(seed)]), flush=True)


def key_of(arguments: argparse.Namespace, name: str, seed: int) -> str:
    kept = ("set", "layers", "steps", "batch_size", "texts", "tokens", "learning_rate", "limit")
    how = [{key: vars(arguments)[key] for key in kept}, Path(arguments.model).name, CASES[name], seed]
    return short_hash(how)


def trained(arguments: argparse.Namespace, settings: dict[str, Any] | None, seed: int) -> dict[str, Any]:
    """One row: how well the next token of held texts is foretold, and how the zeros moved."""
    import torch

    from optimum_slim.data.texts import Data, load_texts
    from optimum_slim.model.anatomy import block_list
    from optimum_slim.model.checkpoint import load_model, load_tokenizer
    from optimum_slim.model.surgery import keep_layers
    from optimum_slim.tasks.evaluate import Evaluation
    from optimum_slim.tasks.text_generation import TextGeneration
    from optimum_slim.techniques.train import Train
    from optimum_slim.training.batches import TrainingData

    torch.set_num_threads(arguments.threads)
    model, folder = load_model(arguments.model), Path(arguments.model)
    keep_layers(model, range(arguments.layers))
    torch.manual_seed(seed)
    block_list(model).apply(model._init_weights)
    data = Data(source=arguments.data, sets={"": f"{arguments.set}.*"}, max_length=arguments.tokens)
    task = TextGeneration(model.config, load_tokenizer(folder), data, folder)
    texts = load_texts(data, 0)
    assert texts.train is not None, "there is no train split"
    examples = task.examples(texts.train.shuffle(seed=0), arguments.texts)
    zeros = watched(settings) if settings is not None else None
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        Train(
            max_steps=arguments.steps,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            labels=1.0,
            freeze=("embeddings",),
            with_=() if zeros is None else (zeros,),
        ).apply(
            model,
            training_data=TrainingData(examples, task.collate),
            tokenizer=task.tokenizer,
            seed=seed,
            workdir=Path(work),
        )
    held = task.examples(texts.validation[""], arguments.limit)
    outcomes = Evaluation(task, {"": held}).outcomes(model, 8)[""]
    tokens = [example["input_ids"][1:] for example in held]
    row = {
        "accuracy": 0.0,
        "perplexity": math.exp(sum(nats for nats, _ in outcomes) / sum(map(len, tokens))),
        "seconds": round(time.monotonic() - begun),
        # The share of each block's tokens that were foretold, so that any two rows compare block by block.
        "correct": [
            round(float((guesses == truth).mean()), 4) for (_, guesses), truth in zip(outcomes, tokens, strict=True)
        ],
    }
    row["accuracy"] = round(sum(row["correct"]) / len(row["correct"]), 5)
    return row if zeros is None else row | zeros.seen()


def watched(settings: dict[str, Any]) -> Any:
    """sparsify.evolve, which also tells how many weights were not zero after each step, and the share of them that
    stood elsewhere at the end."""
    from optimum_slim.techniques.sparsify.evolve import SparsifyEvolve

    class Watched(SparsifyEvolve):
        def begin(self, model: Any, teacher: Any) -> None:
            super().begin(model, teacher)
            self.first = {name: gone.clone() for name, gone in self.gone.items()}
            self.counts = {self.count()}

        def before_step(self, model: Any, step: Any) -> None:
            super().before_step(model, step)
            self.counts.add(self.count())

        def count(self) -> int:
            return sum(int((~gone).sum()) for gone in self.gone.values())

        def end(self, model: Any) -> None:
            self.stayed = sum(int((~(gone | self.first[name])).sum()) for name, gone in self.gone.items())
            super().end(model)

        def seen(self) -> dict[str, Any]:
            return {"nonzeros": sorted(self.counts), "moved": round(1 - self.stayed / max(self.counts), 4)}

    return Watched(**settings)


def told(name: str, seed: int, row: dict[str, Any]) -> str:
    moved = f"  nonzeros {row['nonzeros']}  moved {row['moved']:.0%}" if "moved" in row else ""
    return f"{name:<20} seed {seed}  accuracy {row['accuracy']:.4f}  perplexity {row['perplexity']:.2f}{moved}"


if __name__ == "__main__":
    main()

"""What 8 bits cost a classifier: learnt in training (quantize.aware), or found on texts, or while it runs.

Every case is the served file, loaded by ONNX Runtime, on the texts of validation and test together. A seed draws the
calibration texts and the batches of training. Cases that the JSON file has already are not run again.

python tests/benchmarks/quantization.py --model M --data D --seeds 0,1,2 --json results/quantization.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CASES = {  # name: precision, how ranges are found, whether training learns to round
    "fp32": ("fp32", None, False),
    "dynamic": ("int8-dynamic", None, False),
    "static minmax": ("int8-static", "minmax", False),
    "static percentile": ("int8-static", "percentile", False),
    "static entropy": ("int8-static", "entropy", False),
    "static aware": ("int8-static", "minmax", True),
}
SEEDLESS = ("fp32", "dynamic")  # nothing is drawn
AWARE = "static aware"
DRAWS = 2000  # of the bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", default="0", type=lambda told: [int(seed) for seed in told.split(",")])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--calibration", type=int, default=128, help="texts to find ranges on")
    parser.add_argument("--epochs", type=float, default=2.0, help="of training with quantize.aware")
    parser.add_argument("--max-steps", type=int, help="or so many steps")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--limit", type=int, help="texts of validation and of test to judge on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = {key: value for key, value in vars(arguments).items() if key in SETTINGS}
    settings |= {key: Path(settings[key]).name for key in ("model", "data")}
    rows = known_rows(arguments.json, settings)
    for case in arguments.cases:
        for seed in [0] if case in SEEDLESS else arguments.seeds:
            row = next((row for row in rows if (row["case"], row["seed"]) == (case, seed)), None)
            if row is None:
                row = measured(arguments, case, seed)
                rows.append(row)
                keep(arguments.json, settings, rows)
            print(f"{case:<20} seed {seed}  accuracy {accuracy(row):.4f}", flush=True)
    for told in compared(rows):
        print(f"{AWARE} - {told['case']:<20} {told['mean']:+.4f}  95 % {told['low']:+.4f} to {told['high']:+.4f}")


SETTINGS = ("model", "data", "calibration", "epochs", "max_steps", "learning_rate", "limit")


def known_rows(path: Path | None, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file that was made with these settings."""
    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        raise SystemExit(f"{path} was made with other settings: {found['settings']}; name another file")
    return found["rows"]


def keep(path: Path | None, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    if path is not None:
        told = {"settings": settings, "rows": rows, "paired": list(compared(rows))}
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def compared(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """How much more often quantize.aware is right than each other case, on the same texts: the mean over seeds, and its
    95 % interval from a seeded bootstrap over texts."""
    correct = {case: np.array([[*map(int, row["correct"])] for row in rows if row["case"] == case]) for case in CASES}
    if not len(correct[AWARE]):
        return
    for case, found in correct.items():
        if case != AWARE and len(found):
            difference = correct[AWARE].mean(0) - found.mean(0)
            drawn = np.random.default_rng(0).integers(len(difference), size=(DRAWS, len(difference)))
            low, high = np.percentile(difference[drawn].mean(1), [2.5, 97.5])
            yield {"case": case, "mean": float(difference.mean()), "low": float(low), "high": float(high)}


def accuracy(row: dict[str, Any]) -> float:
    return row["correct"].count("1") / len(row["correct"])


def measured(arguments: argparse.Namespace, case: str, seed: int) -> dict[str, Any]:
    """One row: the case, the seed, and for each text whether the served file was right."""
    import torch
    import transformers

    from optimum_slim.data.texts import Data, load_texts
    from optimum_slim.deploy.choose import Deploy, choose_precision
    from optimum_slim.deploy.export import export_folder
    from optimum_slim.deploy.verify import load_ort
    from optimum_slim.model.checkpoint import load_model, load_tokenizer
    from optimum_slim.progress import silence
    from optimum_slim.tasks import task_named
    from optimum_slim.tasks.evaluate import run

    silence()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    model, folder = load_model(arguments.model), Path(arguments.model)
    data = Data(source=arguments.data)
    task = task_named("auto", model.config)(model.config, load_tokenizer(folder), data, folder)
    texts = load_texts(data, 0)
    assert texts.train is not None, "there is no train split"
    drawn = task.examples(texts.train.shuffle(seed=seed), arguments.calibration, labelled=False)
    batches = [task.collate(drawn[start : start + 8]) for start in range(0, len(drawn), 8)]
    precision, method, aware = CASES[case]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if aware:
            train(arguments, model, task, texts, seed, work / "training")
        fp32 = export_folder(model, type(task), work / "export")
        deploy = Deploy(precision, method or "minmax", max_quality_loss=None)
        served = load_ort(
            choose_precision(model, fp32, work, deploy, None, False, lambda: batches).folder, type(task), 1
        )
        correct = ""
        for rows in (texts.validation[""], texts.test[""]):
            examples = task.examples(rows, arguments.limit)
            found = run(task, served, examples, batch_size=1)
            correct += "".join(str(int(answer == one["labels"])) for answer, one in zip(found, examples, strict=True))
    return {"case": case, "seed": seed, "correct": correct}


def train(arguments: argparse.Namespace, model: Any, task: Any, texts: Any, seed: int, folder: Path) -> None:
    """Lets the model learn to be rounded, from the answers of the model as it is."""
    from optimum_slim.model.checkpoint import load_model
    from optimum_slim.techniques.distill.logits import DistillLogits
    from optimum_slim.techniques.quantize.aware import QuantizeAware
    from optimum_slim.techniques.train import Train
    from optimum_slim.training.batches import TrainingData

    folder.mkdir()
    Train(
        epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        learning_rate=arguments.learning_rate,
        freeze=("embeddings",),
        with_=(DistillLogits(temperature=2, weight=4), QuantizeAware()),
    ).apply(
        model,
        training_data=TrainingData(task.examples(texts.train), task.collate),
        tokenizer=task.tokenizer,
        seed=seed,
        workdir=folder,
        teacher=load_model(arguments.model).requires_grad_(False),
    )


if __name__ == "__main__":
    main()

"""Speed against quality: many recipes on one classifier, several seeds each, every one judged as the loaded ORT model.

python tests/benchmarks/frontier.py --model M --data D --work W                       trains what is missing
python tests/benchmarks/frontier.py --model M --data D --work W --names "3 layers" --seeds 0,1
python tests/benchmarks/frontier.py --model M --data D --work W --again               makes the files of W anew
python tests/benchmarks/frontier.py --model M --data D --work W --time                times all of them
python tests/benchmarks/frontier.py --model M --data D --work W --plot                draws frontier.svg

Recipes stand in frontier.yaml, results in results/frontier.json. A result is kept under the hash of its recipe, its
seed, the model and the texts, so that a run goes on where another stopped. W keeps the folders that were made: where
files are made in a new way, `--again` makes and judges theirs anew from the trained weights. Timing wants a quiet
machine; a recipe that W holds no folder of is timed after a few steps of training, as what weights are does not change
the time. Drawing wants matplotlib, which is in the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).parent
DRAWS = 2000  # of a bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the folders that are made stay")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "frontier.json")
    parser.add_argument("--names", help="recipes, with ; between them; default: all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--again", action="store_true", help="make anew what was made, without training")
    parser.add_argument("--time", action="store_true", help="time a folder of each recipe, all in turns")
    parser.add_argument("--threads", default="1,2", help="to time with")
    parser.add_argument("--plot", action="store_true", help="draw what is known instead of making any")
    arguments = parser.parse_args()
    found = Frontier(arguments.model, arguments.data, arguments.work, arguments.json)
    names = arguments.names.split(";") if arguments.names else list(found.recipes)
    if arguments.time:
        found.time(names, [int(count) for count in arguments.threads.split(",")])
    elif arguments.plot:
        draw(found.rows, arguments.json.with_suffix(".svg"))
    else:
        # All recipes with one seed say more than one recipe with all.
        for seed in map(int, arguments.seeds.split(",")):
            for name in names:
                if arguments.again:
                    found.make_again(name, seed)
                else:
                    found.make(name, seed)
    for name in names:
        print(told(name, found.rows.get(name, {})))


def read_recipes() -> dict[str, dict[str, Any]]:
    """The contents of whole recipes, by name."""
    content = yaml.safe_load((HERE / "frontier.yaml").read_text(encoding="utf-8"))
    return {name: content["common"] | own for name, own in content["recipes"].items()}


def hardly_trained(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with a few steps of training, in which all its zeros come."""
    short = copy.deepcopy(recipe)
    for training in (step["train"] for step in short["steps"] if "train" in step):
        training["max_steps"] = 4
    return short


class Frontier:
    """Rows by recipe, as the JSON file holds them:

    `{name: {recipe, runs: {seed: {key, accuracy, bytes, seconds, correct}}, points_lost, latency: {cpu: [..]}}}`.
    `correct` has a character for each text, of validation and then test, so that any two rows compare text by text;
    `points_lost` is against the original.
    """

    def __init__(self, model: str, data: str, work: Path, target: Path):
        from optimum_slim.data.texts import Data, load_texts
        from optimum_slim.planning import fingerprint

        self.recipes = read_recipes()
        self.model, self.data, self.work, self.target = model, data, work, target
        self.about = {
            "model": fingerprint(Path(model)),
            "data": load_texts(Data(source=data), 0).fingerprint,
        }
        self.rows: dict[str, Any] = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
        work.mkdir(parents=True, exist_ok=True)

    def key(self, name: str, seed: int) -> str:
        told = {"recipe": self.recipes[name], "seed": seed, **self.about}
        return short_hash(told)

    def make(self, name: str, seed: int) -> None:
        """Runs a recipe and judges what comes out, unless that is known."""
        from optimum_slim import slim
        from optimum_slim.recipe import read_recipe

        key = self.key(name, seed)
        row = self.rows.setdefault(name, {"runs": {}})
        if row["runs"].get(str(seed), {}).get("key") == key:
            return
        print(f"{name}, seed {seed}", flush=True)
        content = self.recipes[name]
        folder = self.work / key
        if not folder.exists():
            report = slim(read_recipe(self.whole(content, seed)), folder, say=print)
            seconds = sum(step["seconds"] for step in report.steps)
            (folder / "seconds.json").write_text(json.dumps(seconds))
        row["recipe"] = content
        row["runs"][str(seed)] = self.judged(key)
        if "original" not in self.rows:
            correct = self.correct(self.original())
            accuracy = round(correct.count("1") / len(correct), 5)
            self.rows["original"] = {"runs": {"0": {"accuracy": accuracy, "correct": correct}}}
        self.save()
        print(told(name, row), flush=True)

    def make_again(self, name: str, seed: int) -> None:
        """Makes and judges the file of a recipe that was run, from its trained weights."""
        from optimum_slim import slim
        from optimum_slim.recipe import read_recipe

        key, row = self.key(name, seed), self.rows.get(name, {"runs": {}})
        folder, fresh = self.work / key, self.work / f"{key}-again"
        if row["runs"].get(str(seed), {}).get("key") != key or not folder.exists():
            return
        slim(read_recipe(self.whole(self.recipes[name], seed) | {"model": str(folder), "steps": []}), fresh)
        shutil.copyfile(folder / "seconds.json", fresh / "seconds.json")
        shutil.rmtree(folder)
        fresh.rename(folder)
        row["runs"][str(seed)] = self.judged(key)
        self.save()
        print(told(name, row), flush=True)

    def judged(self, key: str) -> dict[str, Any]:
        """What a run says of the folder that it made."""
        from optimum_slim.deploy.export import onnx_bytes

        folder = self.work / key
        correct = self.correct(folder)
        return {
            "key": key,
            "accuracy": round(correct.count("1") / len(correct), 5),
            "bytes": onnx_bytes(folder / "model.onnx"),
            "seconds": json.loads((folder / "seconds.json").read_text()),
            "correct": correct,
        }

    def whole(self, content: dict[str, Any], seed: int) -> dict[str, Any]:
        """A recipe with its model, texts and seed."""
        return content | {"model": self.model, "seed": seed, "data": content["data"] | {"source": self.data}}

    def folder_to_time(self, name: str) -> Path:
        """A folder of a recipe that was made, or one that was hardly trained."""
        from optimum_slim import slim
        from optimum_slim.recipe import read_recipe

        runs = self.rows.get(name, {"runs": {}})["runs"].values()
        if kept := [self.work / run["key"] for run in runs if (self.work / run["key"]).exists()]:
            return kept[0]
        folder = self.work / f"{self.key(name, 0)}-untrained"
        if not folder.exists():
            print(f"{name}, to be timed", flush=True)
            slim(read_recipe(self.whole(hardly_trained(self.recipes[name]), 0)), folder)
        return folder

    def original(self) -> Path:
        """The fp32 export."""
        from optimum_slim.deploy.export import export_folder
        from optimum_slim.model.checkpoint import load_model
        from optimum_slim.tasks.text_classification import TextClassification

        folder = self.work / f"original-{self.about['model'][:16]}"
        if not (folder / "model.onnx").exists():
            shutil.rmtree(folder, ignore_errors=True)
            export_folder(load_model(self.model), TextClassification, folder)
        return folder

    def correct(self, folder: Path) -> str:
        """For each text of validation and test whether the loaded ORT model is right: 1 or 0."""
        from optimum_slim.data.texts import Data, load_texts
        from optimum_slim.deploy.verify import load_ort
        from optimum_slim.model.checkpoint import load_config, load_tokenizer
        from optimum_slim.tasks.evaluate import Evaluation
        from optimum_slim.tasks.text_classification import TextClassification

        data = Data(source=self.data)
        source = Path(self.model)
        task = TextClassification(load_config(source), load_tokenizer(source), data, source)
        evaluation = Evaluation.of(task, load_texts(data, 0).evaluation("validation+test"))
        outcomes = evaluation.outcomes(load_ort(folder, TextClassification, 1))
        return "".join(
            str(int(answer == example["labels"]))
            for part, examples in evaluation.sets.items()
            for answer, example in zip(outcomes[part], examples, strict=True)
        )

    def time(self, names: list[str], threads: list[int]) -> None:
        """Times one folder of each recipe, all in turns: the seed does not change the speed."""
        from optimum_slim.deploy.benchmark import Target, benchmark, speedup
        from optimum_slim.deploy.machine import environment
        from optimum_slim.kernels.library import isa

        files = {"original": self.original() / "model.onnx"}
        files |= {name: self.folder_to_time(name) / "model.onnx" for name in names}
        times = benchmark(files, Target(threads=threads), False)
        for name, points in times.items():
            of_cpu = self.rows.setdefault(name, {"runs": {}}).setdefault("latency", {})
            of_cpu[isa()] = [
                {key: point[key] for key in ("tokens", "batch", "threads", "p50", "p90")}
                | {"speedup": speedup(slow["rounds"], point["rounds"])}
                for point, slow in zip(points, times["original"], strict=True)
            ]
        self.rows["original"].setdefault("environment", {})[isa()] = environment()
        self.save()

    def save(self) -> None:
        for name, row in self.rows.items():
            if "original" in self.rows and row["runs"] and name != "original":
                row["points_lost"] = points_lost(row, self.rows["original"])
        self.target.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")


def short_hash(told: Any) -> str:
    """What a result is kept under: all that it depends on."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def points_lost(row: dict[str, Any], against: dict[str, Any]) -> dict[str, float]:
    """Points of accuracy lost against another row, a mean over seeds, with the 95 % interval over texts and seeds: a
    seeded bootstrap that draws both, text by text paired; seeds are paired where both rows have them. `correct` holds a
    digit, or a share of what was asked, for each text."""
    given, kept = against["runs"], row["runs"]
    pairs = [(given.get(seed, next(iter(given.values()))), run) for seed, run in kept.items()]
    lost = np.array([[float(a) - float(b) for a, b in zip(one["correct"], two["correct"])] for one, two in pairs]) * 100
    draw = np.random.default_rng(0)
    seeds, texts = lost.shape
    means = [lost[draw.integers(seeds, size=seeds)][:, draw.integers(texts, size=texts)].mean() for _ in range(DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": round(float(lost.mean()), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def draw(rows: dict[str, Any], target: Path) -> None:
    """A panel for each kind of CPU: how many times faster than the original, and points of accuracy lost."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "frontier", "svg.fonttype": "none", "font.size": 9}
    cpus = list(dict.fromkeys(cpu for row in rows.values() for cpu in row.get("latency", {})))
    figure, panels = plt.subplots(len(cpus), 1, figsize=(8, 5 * len(cpus)), squeeze=False, layout="constrained")
    for cpu, panel in zip(cpus, panels[:, 0], strict=True):
        for name, row in rows.items():
            if name == "original" or cpu not in row.get("latency", {}) or not row["runs"]:
                continue
            lost, speed = row["points_lost"], row["latency"][cpu][0]["speedup"]["median"]
            error = [[lost["mean"] - lost["low"]], [lost["high"] - lost["mean"]]]
            panel.errorbar(speed, lost["mean"], error, fmt="o", capsize=2, elinewidth=0.6)
            panel.annotate(name, (speed, lost["mean"]), xytext=(5, 4), textcoords="offset points", fontsize=8)
        panel.set(title=cpu, xlabel="times faster than fp32, one thread, 128 tokens", ylabel="points of accuracy lost")
        panel.invert_yaxis()
        panel.grid(alpha=0.3)
    figure.savefig(target, metadata={"Date": None})


def told(name: str, row: dict[str, Any]) -> str:
    found = [f"{run['accuracy']:.4f}" for run in row.get("runs", {}).values()]
    times = [f"{cpu} {points[0]['speedup']['median']:.2f}x" for cpu, points in row.get("latency", {}).items()]
    return f"{name:<34}{' '.join(found)}  {', '.join(times)}"


if __name__ == "__main__":
    main()

"""The model as it was, and how the result compares with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from optimum_slim.deploy.baseline import optimum_int8
from optimum_slim.deploy.benchmark import benchmark, resident_bytes, speedup
from optimum_slim.deploy.export import export_folder, onnx_bytes
from optimum_slim.deploy.lowering import uses_kernels
from optimum_slim.deploy.verify import load_ort
from optimum_slim.model.checkpoint import load_model
from optimum_slim.model.memory import fits
from optimum_slim.planning import Plan
from optimum_slim.report.report import Row, latency_row, parameters_of, zeros_of
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.tasks.samples import samples
from optimum_slim.tasks.task import Metrics
from optimum_slim.workspace import Workspace

Say = Callable[[str], None]


class Original:
    """The model as it was, in ONNX: what every figure is compared with."""

    def __init__(self, plan: Plan, work: Workspace, say: Say):
        self.plan, self.work, self.say = plan, work, say

    @cached_property
    def folder(self) -> Path:
        """Its fp32 export."""
        folder = self.work.kept("original")
        if not (folder / "done").exists():
            self.say("exporting the original model")
            export_folder(load_model(self.plan.folder, self.plan.streamed), type(self.plan.task), folder)
            (folder / "done").touch()
        return folder

    @cached_property
    def int8(self) -> Path:
        """Optimum's own int8 of it."""
        return optimum_int8(self.folder, self.work.scratch("original-int8"))

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The texts to report on, with the original's answers to them."""
        return self._answering(self.plan.evaluation, "evaluating the original model", self.plan.recipe.threads)

    @cached_property
    def validation(self) -> Evaluation | None:
        """The texts that choices are made by, with the original's answers."""
        return self._answering(self.plan.validation, "judging the original model on validation")

    def quality(self, model: Any, batch_size: int = 1) -> Metrics:
        """A model's figures, compared with the original's answers where the task does so."""
        return {} if self.evaluation is None else self.evaluation.quality(model, batch_size)

    def compared(self, model: Any) -> Metrics:
        """The same, and how far its odds are from the original's, where the task tells; without a model the original's
        own figures."""
        if self.evaluation is None or self.evaluation.original is None:
            return {}
        if model is None:
            return self.evaluation.metrics(self.evaluation.original)
        if not self.plan.original_runs:
            return self.evaluation.quality(model)
        return self.evaluation.compared(model, self.model)

    @cached_property
    def model(self) -> Any:
        """Its fp32 export, loaded."""
        return load_ort(self.folder, type(self.plan.task), self.plan.recipe.threads)

    def samples(self, model: Any) -> list[Row]:
        """What a decoder writes, beside what the original writes."""
        if self.evaluation is None or self.plan.task.name != "text-generation":
            return []
        models = {"original": self.model, "final": model} if self.plan.original_runs else {"final": model}
        return list(samples(self.evaluation, models))

    def _answering(self, texts: Evaluation | None, doing: str, threads: int = 0) -> Evaluation | None:
        if texts is None:
            return None
        self.say(doing)
        if self.plan.streamed:  # judged block by block, before there is an ONNX file that needs all of it
            return texts.against(load_model(self.plan.folder, streamed=True))
        return texts.against(load_ort(self.folder, type(self.plan.task), threads))


def figures(model: PreTrainedModel, plan: Plan, original: Original, folder: Path) -> tuple[Row, Row, Row]:
    """The rows of the original, of Optimum's int8 and of the result: size, quality, speed, memory. Of an original that
    memory has no room for there is no speed, and no int8; of a result that it has no room for twice, no speed without
    our kernels."""
    kind, target, threads = type(plan.task), plan.recipe.deploy.target, plan.recipe.threads
    files = {"final": folder}
    if plan.original_runs:
        files = {"original": original.folder, "baseline_int8": original.int8, **files}
    timed = {name: path / "model.onnx" for name, path in files.items()}
    # Both have a session of their own, with weights of their own.
    if uses_kernels(timed["final"]) and fits(2 * onnx_bytes(timed["final"])):
        timed["without_kernels"] = timed["final"]
    times = benchmark(timed, target, plan.causal, without_kernels=("without_kernels",))
    before = load_model(plan.folder, plan.streamed)

    def judged(counted: PreTrainedModel, size: int, ort: Any) -> Row:
        return {
            "parameters": parameters_of(counted),
            "zeros": zeros_of(counted),
            "file_bytes": size,
            "quality": original.compared(ort),
        }

    rows: dict[str, Row] = {}
    if not plan.original_runs:
        rows = {"original": judged(before, plan.original.predicted_bytes, None), "baseline_int8": {}}
    for name, path in files.items():
        counted = model if name == "final" else before
        ort = None if name == "original" else load_ort(path, kind, threads)
        rows[name] = {
            **judged(counted, onnx_bytes(path / "model.onnx"), ort),
            **latency_row(times[name]),
            "rss_bytes": resident_bytes(path / "model.onnx", target.batch[0], target.tokens[0]),
        }
    if plan.original_runs:
        for row, *compared in zip(rows["final"]["latency"], *(times[name] for name in files), strict=True):
            fp32, int8, ours = compared
            row["speedup"] = {
                "vs_fp32": speedup(fp32["rounds"], ours["rounds"]),
                "vs_optimum_int8": speedup(int8["rounds"], ours["rounds"]),
            }
        rows["final"]["speedup"] = rows["final"]["latency"][0]["speedup"]
    if "without_kernels" in times:
        alone = {
            "latency": latency_row(times["without_kernels"])["latency"],
            "rss_bytes": resident_bytes(timed["final"], target.batch[0], target.tokens[0], kernels=False),
        }
        if plan.original_runs:
            alone["speedup"] = speedup(times["original"][0]["rounds"], times["without_kernels"][0]["rounds"])
        rows["final"]["without_kernels"] = alone
    return rows["original"], rows["baseline_int8"], rows["final"]

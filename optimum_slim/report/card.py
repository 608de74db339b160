"""The Hub model card of a slim model: README.md, with every figure from the report."""

from __future__ import annotations

import math
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from optimum_slim.model.checkpoint import read_json
from optimum_slim.model.hook import QUANT_METHOD
from optimum_slim.report.figures import (
    FILES,
    base_model,
    budget_rows,
    comparison,
    headline,
    judged_on,
    latencies,
    promises,
)
from optimum_slim.report.report import Report
from optimum_slim.report.words import template
from optimum_slim.tasks import TASKS


def write_card(report: Report, folder: Path) -> None:
    """Writes README.md: what the Hub shows, and what `ModelCard.load` reads. Asks nothing of the network.

    Args:
        report: of a finished run.
        folder: the folder that is handed out; its config.json tells which library loads it.
    """
    library = library_name(folder)
    text = template("card.md.jinja").render(
        report=report,
        base=base_model(report),
        files=FILES,
        rows=comparison(report) + latencies(report),
        judged_on=judged_on(report),
        promises=promises(report),
        budget=budget_rows(report),
        headline=headline(report),
        ort_class=TASKS[report.task].ort_class,
        library=library,
    )
    data = card_data(report, library)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(folder / "README.md")


def card_data(report: Report, library: str) -> ModelCardData:
    """The card's metadata; `library` is what the Hub shows how to load the folder with."""
    base, precision, source = base_model(report), report.final["precision"], report.recipe["data"]["source"]
    results, speed = eval_results(report), report.final.get("speedup")
    return ModelCardData(
        # The Hub knows quantized, finetune, adapter and merge; whatever else was done, 8 bits are what one downloads.
        base_model=base["id"],
        license=report.model.get("license"),
        base_model_relation=base["id"] and ("finetune" if precision == "fp32" else "quantized"),
        library_name=library,
        pipeline_tag=report.task,
        tags=["onnx", "onnxruntime", "optimum-slim", precision],
        datasets=source if source and "/" in source else None,
        model_name=f"{base['name'].rpartition('/')[2]}-slim" if results else None,
        eval_results=results or None,
        # What `model-index` has no place for: claims that can be measured again.
        slim={
            "file_bytes": report.final["file_bytes"],
            "parameters": report.final["parameters"],
            **({"speedup_vs_fp32": float(speed["vs_fp32"]["median"])} if speed else {}),
        },
    )


def eval_results(report: Report) -> list[EvalResult]:
    """The measured quality, a result for each metric and set. YAML's infinity is no number to the Hub: left out."""
    data = report.recipe["data"]
    return [
        EvalResult(
            task_type=report.task,
            dataset_type=data["source"],
            dataset_name=data["source"],
            dataset_config=name.partition("/")[2] or None,
            dataset_split=data["evaluation"],
            metric_type=name.partition("/")[0],
            metric_name=name,
            metric_value=float(value),  # numpy's floats are none to YAML
        )
        for name, value in report.final["quality"].items()
        if math.isfinite(value)
    ]


def library_name(folder: Path) -> str:
    """What loads the PyTorch model: transformers, where layers differ only after `import optimum_slim`; or
    sentence-transformers, whose files were carried along."""
    path = folder / "config.json"
    quantization = read_json(path).get("quantization_config") if path.exists() else None
    if (quantization or {}).get("quant_method") == QUANT_METHOD:
        return "optimum-slim"
    return "sentence-transformers" if (folder / "modules.json").exists() else "transformers"

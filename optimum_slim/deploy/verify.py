"""Does what was deployed compute what the torch model computes? Asked of the files, not of our intentions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optimum.onnxruntime
import torch
from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim.data.through import outputs_of
from optimum_slim.deploy.export import onnx_bytes
from optimum_slim.deploy.machine import session_options
from optimum_slim.deploy.names import find_weights
from optimum_slim.deploy.stored import read_graph
from optimum_slim.errors import ModelError, VerifyError
from optimum_slim.kernels.session import read_all_logits
from optimum_slim.model.checkpoint import load_model
from optimum_slim.model.memory import fits
from optimum_slim.model.streamed import disk_of, held, parts_of
from optimum_slim.tasks.task import Task

SIZES = ((1, 1), (1, 7), (3, 16), (2, 64))  # (batch, tokens) that are compared
CLOSE = 1e-3  # of the largest output: fp32 exports agree to 1e-6, and a wrong weight or mask is far outside


def load_ort(folder: Path, task: type[Task], threads: int = 0) -> Any:
    """The stock ORTModel of a folder, as it is judged: SlimLinear layers run by our kernels where they are built, and a
    decoder gives the logits of all tokens. Where memory has no room for it, its weights stay on the disk.

    Args:
        threads: of one inference; 0: ONNX Runtime's choice.

    Raises:
        ModelError: it does not load.
    """
    options = read_all_logits(session_options(threads))
    if not fits(onnx_bytes(folder / "model.onnx")):
        # What lies beside the file is mapped, and used as it is: the system drops what it has no room for.
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return getattr(optimum.onnxruntime, task.ort_class).from_pretrained(folder, session_options=options)
    except Exception as error:
        raise ModelError(f"{folder} does not load as {task.ort_class}: {error}") from error


def difference(model: Any, other: Any, sizes: tuple[tuple[int, int], ...] = SIZES) -> dict[str, float]:
    """Runs two models, torch or ORT, on the same random tokens of several batch sizes and lengths, half of each
    batch padded.

    Returns:
        `largest`: the largest difference as a share of the largest output; `cosine`: the smallest cosine of one
        text's outputs. NaN where an output is not finite.
    """
    largest, cosine = 0.0, 1.0
    positions = getattr(model.config, "max_position_embeddings", None) or 64
    for batch, tokens in sizes:
        tokens = min(tokens, positions - 2)  # RoBERTa's first position is its third
        inputs = _random_inputs(model.config, batch, tokens)
        real = inputs["attention_mask"].bool().numpy()
        a, b = (first_output(one, inputs).numpy() for one in (model, other))
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return {"largest": math.nan, "cosine": math.nan}
        if a.ndim == 3:  # outputs at padding mean nothing
            a, b = a * real[..., None], b * real[..., None]
        a, b = a.reshape(batch, -1), b.reshape(batch, -1)
        largest = max(largest, float(np.abs(a - b).max() / np.abs(a).max()))
        norms = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), np.finfo(np.float32).tiny)
        cosine = min(cosine, float(((a * b).sum(1) / norms).min()))
    return {"largest": largest, "cosine": cosine}


def verify(model: PreTrainedModel, fp32: Path, folder: Path, task: type[Task]) -> dict[str, Any]:
    """Compares the model in memory with everything that was written.

    Args:
        model: the slim model, in eval mode.
        fp32: folder of the fp32 export.
        folder: the folder that is handed out, with the deployed model.onnx and the torch checkpoint.

    Returns:
        `fp32_vs_torch`, `deployed_vs_fp32`: as `difference`; `weights_found`: linear and embedding weights found in
        the export by value.

    Raises:
        VerifyError: the fp32 file or the reloaded checkpoint differs from the model, or an output is not finite.
    """
    found = find_weights(read_graph(fp32 / "model.onnx"), model)
    exact, deployed = load_ort(fp32, task), load_ort(folder, task)
    against_torch = difference(model, exact)
    if not against_torch["largest"] <= CLOSE:
        raise VerifyError(f"the ONNX file differs from the torch model: {against_torch['largest']:.1e} of its output")
    against_fp32 = difference(exact, deployed)
    if math.isnan(against_fp32["largest"]):
        raise VerifyError("the deployed ONNX file gives outputs that are not finite")
    changed = list(_changed(model, load_model(folder, streamed=disk_of(model) is not None)))
    if changed:
        raise VerifyError(f"the saved checkpoint differs from the model in memory: {', '.join(changed[:3])}")
    return {"fp32_vs_torch": against_torch, "deployed_vs_fp32": against_fp32, "weights_found": len(found)}


@torch.no_grad()
def first_output(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits or last hidden states that a model, torch or ORT, gives on a batch: float32 [batch, ..], on the CPU."""
    wanted = {name: value for name, value in inputs.items() if name != "token_type_ids" or _reads_types(model)}
    extra = {"use_cache": False} if getattr(model, "can_generate", lambda: False)() else {}
    outputs = model(**wanted, **extra) if disk_of(model) is None else next(outputs_of(model, [wanted]))
    found = outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state
    return found.float().cpu()


def _changed(model: PreTrainedModel, saved: PreTrainedModel) -> Iterator[str]:
    """The parameters that are not the same in both."""
    for part, names in parts_of(model).items():
        with held(model, part), held(saved, part):
            for name in names:
                if not torch.equal(model.get_parameter(name), saved.get_parameter(name)):
                    yield name


def _reads_types(model: Any) -> bool:
    return model.config.model_type == "bert"


def _random_inputs(config: Any, batch: int, tokens: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(5, config.vocab_size, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch, 2):
        mask[row, tokens - tokens // 3 :] = 0
    if config.pad_token_id is not None:
        ids = ids.masked_fill(mask == 0, config.pad_token_id)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}

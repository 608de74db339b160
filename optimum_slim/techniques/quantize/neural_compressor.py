"""Methods of Intel's neural-compressor, and its integers: taken over as they are, never rounded again."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.progress import logs_silenced

BATCH = 8  # texts in a step
PARTS = ("qweight", "qzeros", "scales")  # of a packed linear


def packed_integers(qweight: Tensor, qzeros: Tensor, scales: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """The integers of a linear as neural-compressor (`INCWeightOnlyLinear`) and auto-round pack them, after GPTQ's
    tools: int32 words with the first integer lowest, of weights down the inputs, of zero points along the outputs, and
    these less 1.

    Args:
        qweight: [K * bits / 32, N]. qzeros: [groups, N * bits / 32]. scales: float [groups, N]. bits: 4 or 8.

    Returns:
        q uint8 [N, K], K filled up to whole words; scale float32 and zero point uint8 [N, groups].
    """
    outputs, levels = scales.shape[1], 2**bits - 1
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    q = (qweight[:, None] >> shifts[:, None]) & levels
    zeros = (qzeros[..., None] >> shifts) & levels
    zero_point = (zeros.flatten(1)[:, :outputs].T + 1) & levels
    return q.flatten(0, 1).T.to(torch.uint8), scales.T.float(), zero_point.to(torch.uint8)


def autoround(
    model: PreTrainedModel,
    batches: Batches,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    *,
    iterations: int,
    seed: int,
    folder: Path,
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Learns by signed gradients which way each weight of the blocks is rounded (AutoRound, arXiv:2309.05516), on a
    copy of the model.

    Args:
        model: a decoder. batches: texts, which are strung together and cut to pieces as long as the longest.
        bits, group_size, symmetric: as for `gptq`. iterations: steps for each block. folder: scratch.

    Returns:
        By the names of all linears in the blocks: q uint8 [N, K]; scale and zero point as of `packed_integers`.
    """
    from neural_compressor.torch.quantization import AutoRoundConfig, convert, prepare

    pieces = strung_together(batches)
    shutil.rmtree(folder, ignore_errors=True)
    learning: Any = copy.deepcopy(model).cpu()
    learning.name_or_path = learning.config._name_or_path = ""  # else weights that a step cut come back from there
    config = AutoRoundConfig(
        bits=bits,
        group_size=group_size or -1,
        use_sym=symmetric,
        scheme=f"W{bits}A16",
        iters=iterations,
        seqlen=pieces.shape[1],
        nsamples=len(pieces),
        batch_size=min(BATCH, len(pieces)),
        seed=seed,
        amp=False,
        device_map="cpu",
        export_format="auto_gptq",
        output_dir=str(folder),
    )
    with logs_silenced():  # both libraries log every setting
        learning = prepare(learning, config)
        for piece in pieces:
            learning(piece[None])
        convert(learning)  # packs block by block into files; what it returns is empty
    tensors: dict[str, Tensor] = {}
    for file in folder.rglob("*.safetensors"):
        tensors |= load_file(file)
    shutil.rmtree(folder, ignore_errors=True)
    found = {}
    for name in (key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")):
        qweight, qzeros, scales = (tensors[f"{name}.{part}"] for part in PARTS)
        q, scale, zero_point = packed_integers(qweight, qzeros, scales, bits)
        found[name] = q[:, : model.get_submodule(name).in_features], scale, zero_point
    return found


def strung_together(batches: Batches) -> Tensor:
    """The real tokens of all texts, one after the other, in pieces as long as the longest text: int64 [pieces, tokens];
    what does not fill the last piece is left out."""
    texts = [ids[mask.bool()] for batch in batches for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
    longest = max(len(text) for text in texts)
    tokens = torch.cat(texts)
    return tokens[: len(tokens) // longest * longest].view(-1, longest)

"""Our numbers against those of the papers' published code, on a layer of a real model and what it reads.

python tests/benchmarks/parity.py --model M --data D --sets S --gptq CLONE --smoothquant CLONE --awq CLONE

CLONEs are those of IST-DASLab/gptq, mit-han-lab/smoothquant and mit-han-lab/llm-awq; each may be left out. Only
the functions that compute are taken from their files, as what these import needs a GPU. Printed is how far ours are
from theirs: the norm of the difference by the norm of theirs, and the share of weights that differ by more than 1e-3 of
their group's largest.
"""

from __future__ import annotations

import argparse
import ast
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sparsify import calibration, decoder_parser, evaluated
from torch import Tensor, nn

GROUP = 32
LAYERS = ("self_attn.o_proj", "mlp.gate_proj")
BLOCK = 10  # of the model


def main() -> None:
    parser = decoder_parser(str(__doc__), evaluation="validation", limit=1)
    comparisons = {"gptq": compare_gptq, "smoothquant": compare_smoothquant, "awq": compare_awq}
    for published in comparisons:
        parser.add_argument(f"--{published}", type=Path, help="a checkout of the published code")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, (weight, x) in layers_of(arguments).items():
        for published, compare in comparisons.items():
            if checkout := getattr(arguments, published):
                compare(checkout, name, weight, x)


def layers_of(arguments: argparse.Namespace) -> dict[str, tuple[Tensor, Tensor]]:
    """Weights [N, K] and inputs [rows, K] of some linears of one block."""
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    ids = torch.cat([batch["input_ids"] for batch in calibration(evaluated(arguments)[0], arguments)])
    block, found = model.model.layers[BLOCK], dict[str, Any]()

    def keep(name: str) -> Any:
        return lambda module, given, output: found.update({name: given[0]})

    hooks = [block.get_submodule(name).register_forward_hook(keep(name)) for name in LAYERS]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return {name: (block.get_submodule(name).weight.detach().clone(), found[name].flatten(0, 1)) for name in LAYERS}


def taken(path: Path, *names: str, **given: Any) -> dict[str, Any]:
    """These functions and classes of a file, wherever they stand in it; `given` is what they refer to besides."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    methods = {id(part) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for part in node.body}
    able = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef))
    parts: list[Any] = [node for node in able if node.name in names and id(node) not in methods]
    space = {"torch": torch, "nn": nn, "np": np, "math": math, "time": time, "transformers": transformers, **given}
    exec(compile(ast.Module(parts, []), str(path), "exec"), space)  # noqa: S102
    return space


def compare_gptq(checkout: Path, name: str, weight: Tensor, x: Tensor) -> None:
    from optimum_slim.techniques.quantize.gptq import gptq

    space = taken(checkout / "quant.py", "quantize", "Quantizer")
    space = taken(checkout / "gptq.py", "GPTQ", **space, DEBUG=False, print=lambda *_: None)
    torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    for bits in (4, 8):
        for symmetric in (True, False):
            for ordered in (False, True):
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight.data = weight.clone()
                theirs = space["GPTQ"](linear)
                theirs.quantizer = space["Quantizer"]()
                theirs.quantizer.configure(bits, perchannel=True, sym=symmetric)
                theirs.add_batch(x[None], None)
                hessian = theirs.H.clone()
                theirs.fasterquant(groupsize=GROUP, actorder=ordered, static_groups=ordered)
                q, scale, zero = gptq(weight, hessian, bits, GROUP, symmetric, ordered=ordered)
                spread = [one.repeat_interleave(GROUP, 1) for one in (scale, zero.int())]
                order = "by curvature" if ordered else "as they lie"
                kind = "symmetric" if symmetric else "asymmetric"
                told("GPTQ", f"{name}, {bits} bits, {kind}, {order}", (q.int() - spread[1]) * spread[0], linear.weight)


def compare_smoothquant(checkout: Path, name: str, weight: Tensor, x: Tensor) -> None:
    from optimum_slim.techniques.quantize.smooth import smooth_scales

    names = dict.fromkeys(("LlamaRMSNorm", "MistralRMSNorm", "MixtralRMSNorm"), nn.RMSNorm)
    smooth = taken(checkout / "smoothquant" / "smooth.py", "smooth_ln_fcs_llama_like", **names)
    for alpha in (0.5, 0.8):
        linear, own = nn.Linear(weight.shape[1], weight.shape[0], bias=False), nn.RMSNorm(weight.shape[1])
        linear.weight.data = weight.clone()
        absmax = x.abs().amax(0)
        smooth["smooth_ln_fcs_llama_like"](own, [linear], absmax, alpha)
        scales = smooth_scales(absmax, weight.abs().amax(0), alpha)
        told("SmoothQuant", f"{name}, alpha {alpha}", weight * scales, linear.weight)


def compare_awq(checkout: Path, name: str, weight: Tensor, x: Tensor) -> None:
    from optimum_slim.techniques.quantize.awq import awq_scales

    quantize = taken(checkout / "awq" / "quantize" / "quantizer.py", "pseudo_quantize_tensor")["pseudo_quantize_tensor"]
    for bits in (4, 3):
        space = taken(
            checkout / "awq" / "quantize" / "auto_scale.py",
            "get_act_scale", "_search_module_scale",
            w_quantize_func=lambda p, bits=bits: quantize(p, n_bit=bits, q_group_size=GROUP).detach(),
        )  # fmt: skip
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.clone()
        theirs = space["_search_module_scale"](linear.requires_grad_(False), [linear], x)
        ours = awq_scales(weight, x.T @ x / len(x), x.abs().mean(0), bits, GROUP, False)
        told("AWQ", f"{name}, scales, {bits} bits", ours[None], theirs[None])


def told(method: str, case: str, ours: Tensor, theirs: Tensor) -> None:
    ours, theirs = ours.detach(), theirs.detach()
    off = (ours - theirs).norm() / theirs.norm()
    size = GROUP if theirs.shape[1] % GROUP == 0 else theirs.shape[1]
    parts = (theirs.shape[0], -1, size)
    largest = theirs.reshape(parts).abs().amax(-1, keepdim=True)
    other = ((ours - theirs).reshape(parts).abs() > 1e-3 * largest).float().mean()
    print(f"{method:<12}{case:<55} off by {off:.1e}, others {other:.4%}", flush=True)


if __name__ == "__main__":
    main()

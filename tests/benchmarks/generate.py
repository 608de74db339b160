"""Does a slim decoder still write? Greedy texts of the torch model, of its fp32 ONNX file and of a slim folder.

python tests/benchmarks/generate.py --model M --slim FOLDER [--prompt "..."]...
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from optimum_slim.deploy.export import export
from optimum_slim.deploy.verify import load_ort
from optimum_slim.model.checkpoint import load_model, load_tokenizer
from optimum_slim.tasks import TASKS

PROMPTS = ("The capital of France is", "It was a dark and stormy night, and", "To install the package, first")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--slim", required=True)
    parser.add_argument("--prompt", action="append")
    parser.add_argument("--tokens", type=int, default=40)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    task = TASKS["text-generation"]
    model, tokenizer = load_model(arguments.model), load_tokenizer(Path(arguments.model))
    with tempfile.TemporaryDirectory() as folder:
        export(model, task, Path(folder) / "model.onnx")
        model.config.save_pretrained(folder)
        exact, slim = load_ort(Path(folder), task), load_ort(Path(arguments.slim), task)
        for prompt in arguments.prompt or PROMPTS:
            texts = {name: written(one, tokenizer, prompt, arguments.tokens)
                     for name, one in (("torch", model), ("onnx fp32", exact), ("slim", slim))}  # fmt: skip
            print(f"fp32 equals torch: {texts['torch'] == texts['onnx fp32']}")
            for name, text in texts.items():
                print(f"  {name:<10}{text!r}")


def written(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(ids[0])


if __name__ == "__main__":
    main()

"""What users get wrong: one clear message each, exit code 2, no traceback, and everything on disk as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AlbertConfig

from tests.tiny import save_rows, save_tiny

RECIPE = """
slim: 1
data: {max_length: 16, limit: 8}
steps: [prune.layers: {keep: 1}]
deploy: {precision: fp32, target: {tokens: [16]}}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a recipe, a model, texts, and the output of an earlier run."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    save_tiny(Path("model"), "bert")
    save_rows(Path("texts"), "text-classification")
    Path("out").mkdir()
    Path("out/slim_report.json").write_text("{}")
    Path("out/model.onnx").write_text("of an earlier run")
    return tmp_path


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def cut(name: str) -> None:
    content = Path(name).read_bytes()
    Path(name).write_bytes(content[: len(content) // 2])


def config(**changes) -> None:
    content = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps(content | changes))


def rows(*lines: str) -> None:
    shutil.rmtree("texts")
    Path("texts").mkdir()
    Path("texts/test.jsonl").write_text("\n".join(lines))


def recipe(text: str) -> None:
    Path("recipe.yaml").write_text(text)


def pickled() -> None:
    Path("model/model.safetensors").unlink()
    torch.save({}, "model/pytorch_model.bin")


def another_family() -> None:
    AlbertConfig(architectures=["AlbertModel"]).save_pretrained("model")


def mixed_formats() -> None:
    Path("texts/more.csv").write_text("text,label\nfine,1\n")


def full_disk() -> None:
    shutil.disk_usage = lambda folder: SimpleNamespace(free=10_000)


# What was done before, more arguments, and what the message must tell.
BAD = {
    "unknown key": (None, ["--set", "data.souce=x"], "data.souce: there is no such key; did you mean 'source'?"),
    "wrong type": (None, ["--set", "seed=many"], "seed: must be a whole number, not 'many'"),
    "ratio of 1.5": (None, ["--set", "steps=[prune.ffn: {ratio: 1.5}]"], "ratio must be at least 0 and below 1"),
    "unknown technique": (None, ["--set", "steps=[prune.layres]"], "no technique 'prune.layres'; did you mean"),
    "unknown recipe": (lambda: Path("recipe.yaml").unlink(), [], "recipe.yaml"),
    "key without value": (None, ["--set", "seed"], "write it as key=value, e.g. steps.0.ratio=0.5"),
    "not YAML": (lambda: recipe("slim: [1"), [], "not YAML that can be read"),
    "a tag of Python": (lambda: recipe("slim: !!python/object/apply:os.mkdir [made]"), [], "could not determine a con"),
    "a path that escapes": (None, ["--set", "data.sets={a: ../../etc/*}"], "data.sets.a: '../../etc/*' must be a pat"),
    "missing model": (None, ["--model", "./nowhere"], "model: there is no folder ./nowhere"),
    "missing file": (None, ["--data", "./nowhere.jsonl"], "data: ./nowhere.jsonl is no folder or file here"),
    "empty texts": (lambda: rows(), [], "data: "),
    "missing column": (None, ["--set", "data.text=txet"], "data.text: there is no column 'txet'; the columns are text"),
    "damaged texts": (lambda: rows('{"text": "fi'), [], "data: test.jsonl cannot be read"),
    "texts of two formats": (mixed_formats, [], "are of different formats; keep one"),
    "label out of range": (lambda: rows('{"text": "fine", "label": 7}'), [], "7; the model's labels are LABEL_0, LAB"),
    "unsupported family": (another_family, [], "'albert' are not supported; these are: bert, roberta"),
    "damaged config": (lambda: cut("model/config.json"), [], "config.json"),
    "config of a giant": (lambda: config(hidden_size=2**18), [], "the run needs about"),
    "config of nonsense": (lambda: config(num_attention_heads=0), [], "config.json: the sizes of the model make no"),
    "head of another task": (None, ["--set", "task=text-generation"], "task"),
    "model of another task": (lambda: config(architectures=["BertForQuestionAnswering"]), [], "BertForQuestionAnswer"),
    "code of a stranger": (lambda: config(model_type="x", auto_map={"AutoConfig": "x.X"}), [], "config.json cannot be"),
    "damaged weights": (lambda: cut("model/model.safetensors"), [], "the weights in model cannot be loaded"),
    "weights of another size": (lambda: config(vocab_size=99), [], "size mismatch"),
    "pickled weights": (pickled, [], "the weights in model cannot be loaded"),
    "missing tokenizer": (lambda: [path.unlink() for path in Path("model").glob("*token*")], [], "the tokenizer in mo"),
    "refused order": (
        None,
        ["--set", "steps=[prune.layers: {keep: 1}, prune.layers: {which: [2]}]"],
        "steps.1.prune.layers: which: there is no layer 2; the model has layers 0 to 0",
    ),
    "no space": (full_disk, [], "the run needs about"),
    "an output below a file": (None, ["-o", "recipe.yaml/out"], "the output recipe.yaml/out cannot be written"),
    "an output of somebody else": (lambda: Path("out/slim_report.json").unlink(), [], "holds files that no run wrote"),
    "an output that would replace the model": (None, ["-o", "model"], "would replace model; choose another"),
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("before", "arguments", "told"), BAD.values(), ids=BAD)
def test_a_bad_input_is_one_clear_message_and_nothing_is_touched(here, tmp_path, monkeypatch, before, arguments, told):
    monkeypatch.setattr(shutil, "disk_usage", shutil.disk_usage)  # put back afterwards
    if before is not None:
        before()
    there = everything(tmp_path)
    given = ["run", "recipe.yaml", "--model", "model", "--data", "texts", "-o", "out", "--overwrite", *arguments]
    done = here(*given, code=2)
    assert done.stderr.startswith("error: ")
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(tmp_path) == there


@pytest.mark.usefixtures("place")
def test_an_output_that_exists_is_refused(here, tmp_path):
    there = everything(tmp_path)
    done = here("run", "recipe.yaml", "--model", "model", "--data", "texts", "-o", "out", code=2)
    assert "the output out exists; choose another, or pass --overwrite" in done.stderr
    assert everything(tmp_path) == there


@pytest.mark.parametrize("content", [b"", b"\x08\x0a\x12", b"not ONNX at all" * 1000])
def test_a_damaged_onnx_file_is_one_clear_message(here, tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    done = here("bench", tmp_path, code=2)
    assert done.stderr.startswith(f"error: {tmp_path / 'model.onnx'} does not load in ONNX Runtime")
    assert "Traceback" not in done.stderr

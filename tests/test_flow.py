"""From a recipe to a folder that anyone can load, the same bytes each time, also after a kill."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from optimum_slim.data.texts import load_extra
from optimum_slim.deploy.export import onnx_bytes
from optimum_slim.errors import OutputError, QualityError
from optimum_slim.flow import slim
from optimum_slim.model.checkpoint import load_model
from optimum_slim.model.shape import shape_of
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.planning import fingerprint
from optimum_slim.recipe import load_recipe, read_recipe
from optimum_slim.report.report import Report, parameters_of
from tests.tiny import save_rows, save_tiny, tiny, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("few_rounds")

DEPLOY = {"max_quality_loss": None, "target": {"tokens": [16]}}
TRAIN = {"max_steps": 3, "batch_size": 8, "with": [{"distill.logits": {"temperature": 2}}]}
ENCODER = {
    "steps": [{"prune.layers": {"ratio": 0.3}}, {"prune.ffn": {"ratio": 0.5}}, {"train": TRAIN}],
    "deploy": {"precision": "int8-dynamic", **DEPLOY},
}
DECODER = {
    "steps": [{"prune.kv_heads": {"ratio": 0.5}}, {"prune.ffn": {"ratio": 0.5}}],
    "deploy": {"precision": "int8-weights", **DEPLOY},
}
SAME_BYTES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
              "model.safetensors", "model.onnx", "slim_recipe.yaml")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models, their texts, and recipes for both."""
    root = tmp_path_factory.mktemp("flow")
    for name, family, task, recipe in (
        ("encoder", "bert", "text-classification", ENCODER),
        ("decoder", "llama", "text-generation", DECODER),
    ):
        save_tiny(root / name, family)
        save_rows(root / f"{name}-texts", task)
        data = {"source": str(root / f"{name}-texts"), "max_length": 16, "limit": 8, "calibration": 16}
        content = {"slim": 1, "model": str(root / name), "data": data, **recipe}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (root / "encoder" / "2_Dense").mkdir()
    (root / "encoder" / "2_Dense" / "config.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def finished(folder):
    """The folder that a recipe's undisturbed run wrote."""
    before = {name: fingerprint(folder / name) for name in ("encoder", "decoder")}

    def run(name: str) -> Path:
        output = folder / f"{name}-slim"
        if not output.exists():
            slim(load_recipe(str(folder / f"{name}.yaml")), output)
        return output

    yield run
    assert before == {name: fingerprint(folder / name) for name in before}, "the original was changed"


def figures(output: Path) -> dict:
    return json.loads((output / "slim_report.json").read_text())


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_what_comes_out_is_smaller_and_loads_in_torch(folder, finished, name):
    model, original = load_model(finished(name)), load_model(folder / name)
    assert parameters_of(model) < parameters_of(original)
    wanted = {"encoder": [(4, 4, 64)] * 2, "decoder": [(2, 1, 64)] * 3}[name]
    assert [(block.heads, block.kv_heads, block.ffn) for block in shape_of(model).blocks] == wanted
    assert onnx_bytes(finished(name) / "model.onnx") < 4 * parameters_of(model)
    assert not (folder / f"{name}-slim.partial").exists()


def test_a_decoder_is_compared_with_the_original_in_odds_and_in_writing(finished):
    report = figures(finished("decoder"))
    assert 0 < report["final"]["quality"]["kl_divergence"] < 5
    assert 0 < report["baseline_int8"]["quality"]["kl_divergence"] < 5
    assert "kl_divergence" not in report["original"]["quality"]
    assert len(report["samples"]) == 3
    assert all(row.keys() == {"prompt", "original", "final"} for row in report["samples"])
    card = (finished("decoder") / "README.md").read_text()
    assert report["samples"][0]["final"] in card


LOADED = {
    "encoder": ("ORTModelForSequenceClassification", "model(**tokens).logits[0].tolist()"),
    "decoder": ("ORTModelForCausalLM", "model.generate(**tokens, max_new_tokens=3, do_sample=False)[0].tolist()"),
}


@pytest.mark.parametrize("name", LOADED)
def test_stock_optimum_runs_what_comes_out_without_us(finished, name):
    kind, answer = LOADED[name]
    program = "\n".join(
        (
            "import json, sys",
            f"from optimum.onnxruntime import {kind}",
            "from transformers import AutoTokenizer",
            f"model = {kind}.from_pretrained(sys.argv[1])",
            "tokens = AutoTokenizer.from_pretrained(sys.argv[1])('good w20 w21', return_tensors='pt')",
            f"answer = {answer}",
            "print(json.dumps([answer, 'optimum_slim' in sys.modules]))",
        )
    )
    done = subprocess.run([sys.executable, "-c", program, finished(name)], capture_output=True, text=True, check=True)
    answer, ours = json.loads(done.stdout.splitlines()[-1])
    assert not ours
    if name == "decoder":
        assert len(answer) == 6
    else:
        tokens = tiny_tokenizer("bert")("good w20 w21", return_tensors="pt")
        with torch.no_grad():
            wanted = load_model(finished(name))(**tokens).logits
        torch.testing.assert_close(torch.tensor([answer]), wanted, atol=0.2, rtol=0)


ROW = {"parameters", "zeros", "file_bytes", "quality", "latency", "latency_ms", "rss_bytes"}
STEP = {"technique", "settings", "parameters", "zeros", "predicted_bytes", "quality_torch", "seconds", "peak_rss_bytes"}


@pytest.mark.parametrize(("name", "metric"), [("encoder", "accuracy"), ("decoder", "perplexity")])
def test_the_report_tells_every_figure_of_before_and_after(finished, name, metric):
    report = figures(finished(name))
    assert set(report) >= {"model", "task", "recipe", "steps", "original", "baseline_int8", "final", "environment"}
    for row in (report["original"], report["baseline_int8"], report["final"]):
        assert set(row) >= ROW
        assert math.isfinite(row["quality"][metric])
        assert set(row["latency"][0]) >= {"batch", "tokens", "threads", "p50", "p90", "p99"}
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p90"] <= row["latency_ms"]["p99"]
        assert row["rss_bytes"] > row["file_bytes"]
    assert set(report["final"]["speedup"]) == {"vs_fp32", "vs_optimum_int8"}
    for interval in report["final"]["speedup"].values():
        assert 0 < interval["low"] <= interval["median"] <= interval["high"]
    assert report["final"]["file_bytes"] == onnx_bytes(finished(name) / "model.onnx")
    assert report["final"]["parameters"] == parameters_of(load_model(finished(name)))


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_the_report_tells_every_step_with_its_settings(finished, name):
    report = figures(finished(name))
    recipe = load_recipe(str(finished(name) / "slim_recipe.yaml"))
    assert [row["technique"] for row in report["steps"]] == [next(iter(step)) for step in recipe.complete()["steps"]]
    assert all(set(row) - {"losses", "blocks"} == STEP for row in report["steps"])
    assert [len(row["losses"]) for row in report["steps"] if row["technique"] == "train"] == [3] * (name == "encoder")
    assert [row["settings"] for row in report["steps"]] == [next(iter(s.values())) for s in recipe.complete()["steps"]]
    assert report["steps"][-1]["parameters"] == report["final"]["parameters"]
    assert Report.read(finished(name)).recipe == recipe.complete()


def test_the_recipe_beside_the_result_is_complete_and_names_no_path(folder, finished):
    text = (finished("encoder") / "slim_recipe.yaml").read_text()
    assert str(folder) not in text
    assert str(folder) not in (finished("encoder") / "slim_report.json").read_text()
    again = load_recipe(
        str(finished("encoder") / "slim_recipe.yaml"),
        {"model": str(folder / "encoder"), "data.source": str(folder / "encoder-texts"), "deploy.decided": "null"},
    )
    assert again == load_recipe(str(folder / "encoder.yaml"))
    assert yaml.safe_load(text)["deploy"]["decided"] == {"precision": "int8-dynamic"}


def test_files_of_other_libraries_are_carried_along(finished):
    assert (finished("encoder") / "2_Dense" / "config.json").read_text() == "{}"


def killed_run(recipe: Path, output: Path, until: str) -> None:
    """Runs in a process of its own, which is killed as soon as its workspace holds `until`."""
    program = "import sys, optimum_slim; optimum_slim.slim(optimum_slim.load_recipe(sys.argv[1]), sys.argv[2])"
    with subprocess.Popen([sys.executable, "-c", program, recipe, output], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(output.with_name(f"{output.name}.partial").glob(until)):
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"


@pytest.mark.parametrize(
    ("name", "until"),
    [
        ("encoder", "step-02"),
        pytest.param("encoder", "step-01", marks=pytest.mark.slow),
        pytest.param("encoder", "training-03/checkpoint-*/trainer_state.json", marks=pytest.mark.slow),
        pytest.param("encoder", "precision/*/model.onnx", marks=pytest.mark.slow),
        pytest.param("encoder", "final/model.safetensors", marks=pytest.mark.slow),
        pytest.param("decoder", "step-01", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(folder, finished, tmp_path, name, until):
    recipe, said = folder / f"{name}.yaml", []
    killed_run(recipe, tmp_path / "out", until)
    assert not (tmp_path / "out").exists()
    slim(load_recipe(str(recipe)), tmp_path / "out", say=said.append)
    assert not [line for line in said if line.startswith("step 1 ")]
    for file in SAME_BYTES:
        assert (tmp_path / "out" / file).read_bytes() == (finished(name) / file).read_bytes(), file


@pytest.fixture(scope="module")
def more(folder):
    """A recipe that learns from labels, from texts without them, and from changed copies, by a cached teacher."""
    (folder / "more.txt").write_text("".join(f"w{at} good w{at + 9}\n" for at in range(20, 60)))
    save_tiny(folder / "words", "bert", "ForMaskedLM")
    augment = {"copies": 2, "masked_lm": str(folder / "words")}
    train = {**TRAIN, "max_steps": 30, "labels": 0.5, "augment": augment, "teacher_cache": True}
    content = yaml.safe_load((folder / "encoder.yaml").read_text()) | {
        "steps": [{"prune.ffn": {"ratio": 0.5}}, {"train": train}]
    }
    content["data"]["extra"] = [str(folder / "more.txt")]
    (folder / "more.yaml").write_text(yaml.safe_dump(content))
    return folder / "more.yaml"


def test_a_run_with_more_texts_names_them_and_no_path(folder, finished, more):
    output = finished("more")
    assert figures(output)["data"]["extra"] == {
        "names": ["more.txt"],
        "sha256": load_extra(load_recipe(str(more)).data).fingerprint,
    }
    recipe = yaml.safe_load((output / "slim_recipe.yaml").read_text())
    assert recipe["data"]["extra"] == ["more.txt"]
    assert recipe["steps"][1]["train"]["augment"]["masked_lm"] == "words"
    assert str(folder) not in (output / "slim_recipe.yaml").read_text() + (output / "slim_report.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("until", ["teacher-answers/*/*", "training-02/checkpoint-*/trainer_state.json"])
def test_a_killed_run_with_more_texts_goes_on_to_the_same_bytes(finished, more, tmp_path, until):
    killed_run(more, tmp_path / "out", until)
    slim(load_recipe(str(more)), tmp_path / "out")
    for file in SAME_BYTES:
        assert (tmp_path / "out" / file).read_bytes() == (finished("more") / file).read_bytes(), file


@pytest.mark.slow
def test_a_finished_recipe_gives_the_same_bytes_again(folder, finished, tmp_path):
    source = {"model": str(folder / "encoder"), "data.source": str(folder / "encoder-texts")}
    slim(load_recipe(str(finished("encoder") / "slim_recipe.yaml"), source), tmp_path / "out")
    for file in SAME_BYTES:
        assert (tmp_path / "out" / file).read_bytes() == (finished("encoder") / file).read_bytes(), file


def save_delicate(folder: Path) -> Path:
    """A decoder that guesses the next counting word right, beside one value so large that a scale shared by all
    activations rounds the rest away."""
    model, large = tiny("llama"), 1000.0
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-3)
            layer.mlp.down_proj.weight.mul_(1e-3)
        model.model.norm.weight.fill_(1.0)
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.normal_()
        head[1:] = embedding[:-1] * large / 60
        embedding[:, 0], head[:, 0] = large, 0.0
    model.save_pretrained(folder)
    tiny_tokenizer("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def delicate(folder):
    """A recipe for that decoder, without `deploy`."""
    return {
        "slim": 1,
        "model": str(save_delicate(folder / "delicate")),
        "data": {"source": str(folder / "decoder-texts"), "max_length": 16, "limit": 8},
        "steps": [{"prune.layers": {"ratio": 0.3}}],
    }


LOSSY = {"deploy": {"precision": "int8-dynamic", "target": {"tokens": [16]}}}


@pytest.fixture
def too_lossy(delicate, tmp_path):
    """Where a run ended because its precision costs too much."""
    with pytest.raises(QualityError, match="int8-dynamic loses") as caught:
        slim(read_recipe(delicate | LOSSY), tmp_path / "out")
    assert caught.value.exit_code == 1
    return tmp_path / "out"


def test_a_precision_that_costs_too_much_ends_the_run_but_not_the_work(delicate, too_lossy):
    assert not too_lossy.exists()
    said = []
    with pytest.raises(QualityError):
        slim(read_recipe(delicate | LOSSY), too_lossy, say=said.append)
    assert not [line for line in said if line.startswith("step")]
    with pytest.raises(OutputError, match="different recipe"):
        slim(read_recipe(delicate | LOSSY | {"seed": 1}), too_lossy)


def test_after_a_precision_that_costs_too_much_another_one_goes_on_from_there(delicate, too_lossy):
    said, deploy = [], LOSSY["deploy"] | {"precision": "fp32"}
    report = slim(read_recipe(delicate | {"deploy": deploy}), too_lossy, say=said.append)
    assert not [line for line in said if line.startswith("step")]
    assert report.final["quality"]["perplexity"] < 5
    assert [row["technique"] for row in report.steps] == ["prune.layers"]


BUDGET = {"budget": {"quality_drop": 0.01, "speedup": 0.001}}  # so little that a busy machine holds it


@pytest.fixture(scope="module")
def budgeted(delicate, folder):
    """The folder of a run that held a budget which its precision alone does not."""
    slim(read_recipe(delicate | LOSSY | BUDGET), folder / "budgeted")
    return folder / "budgeted"


def test_layers_that_lose_most_are_left_high_until_the_budget_holds(budgeted):
    report = figures(budgeted)
    high = report["recipe"]["deploy"]["decided"]["high"]
    assert set(high) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert sum(high.values()) == pytest.approx(1, abs=0.01)
    assert report["budget"]["high"] == high
    assert report["budget"]["quality_drop"]["reached"] <= report["budget"]["quality_drop"]["wanted"] == 0.01
    decode = report["final"]["latency"][1]
    assert (decode["phase"], report["budget"]["speedup"]["reached"]) == ("decode", decode["speedup"]["vs_fp32"])
    assert report["final"]["quality"]["perplexity"] < 1.02 * report["original"]["quality"]["perplexity"]
    assert {row["stored"] for row in report["final"]["layers"]} == {"int8"}


def test_a_recipe_with_a_held_budget_gives_the_same_bytes_without_a_search(budgeted, delicate, tmp_path, monkeypatch):
    monkeypatch.delattr("optimum_slim.deploy.within.measured")
    source = {"model": delicate["model"], "data.source": delicate["data"]["source"]}
    slim(load_recipe(str(budgeted / "slim_recipe.yaml"), source), tmp_path / "out")
    for file in SAME_BYTES:
        assert (tmp_path / "out" / file).read_bytes() == (budgeted / file).read_bytes(), file


def test_a_budget_that_cannot_be_held_tells_which_end_fails_and_leaves_the_work(delicate, tmp_path):
    deploy = LOSSY["deploy"] | {"precision": "fp32"}
    with pytest.raises(
        QualityError, match=r"^budget.speedup: the fastest file \(fp32.* reaches [\d.]+x. Wanted is 1000x"
    ):
        slim(read_recipe(delicate | {"deploy": deploy, "budget": {"speedup": 1000}}), tmp_path / "out")
    said = []
    report = slim(read_recipe(delicate | {"deploy": deploy}), tmp_path / "out", say=said.append)
    assert not [line for line in said if line.startswith("step")]
    assert report.budget == {}


@pytest.fixture(scope="module")
def too_sparse(folder):
    """A recipe that ends with more zeros than its budget allows."""
    save_tiny(folder / "embedder", "xlm-roberta")
    save_rows(folder / "pairs", "feature-extraction")
    zeros = {"sparsify.magnitude": {"ratio": 0.5, "pattern": "4x1", "targets": ["ffn"]}}
    return {
        "slim": 1,
        "model": str(folder / "embedder"),
        "data": {"source": str(folder / "pairs"), "max_length": 16, "limit": 8},
        "steps": [zeros],
        "deploy": {"precision": "int8-rows", "sparse": "always", **DEPLOY},
        "budget": {"quality_drop": 0.2},
    }


def test_zeros_that_cost_more_than_the_budget_are_taken_back_and_the_bytes_are_the_same_again(too_sparse, tmp_path):
    slim(read_recipe(too_sparse), tmp_path / "out")
    report = figures(tmp_path / "out")
    decided = report["recipe"]["deploy"]["decided"]
    sparse = sparsity_in(load_model(tmp_path / "out").config)
    assert 0 < len(decided["denser"]) < 6
    assert len(sparse) == 6 - len(decided["denser"])
    assert set(decided["patterns"]) == set(sparse)
    assert report["budget"]["denser"] == decided["denser"]
    assert report["budget"]["quality_drop"]["reached"] <= 0.2
    source = {"model": too_sparse["model"], "data.source": too_sparse["data"]["source"]}
    slim(load_recipe(str(tmp_path / "out" / "slim_recipe.yaml"), source), tmp_path / "again")
    for file in SAME_BYTES:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "out" / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("until", ["dense.safetensors", "step-01", "precision/*/model.onnx"])
def test_a_run_killed_before_its_budget_is_held_goes_on_to_the_same_bytes(too_sparse, tmp_path, until):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(too_sparse))
    slim(read_recipe(too_sparse), tmp_path / "whole")
    killed_run(tmp_path / "recipe.yaml", tmp_path / "out", until)
    slim(read_recipe(too_sparse), tmp_path / "out")
    for file in SAME_BYTES:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.slow
def test_auto_hands_out_a_precision_that_keeps_the_quality(delicate, tmp_path):
    report = slim(read_recipe(delicate | {"deploy": {"target": {"tokens": [16]}}}), tmp_path / "out")
    assert report.final["precision"] != "int8-dynamic"
    assert report.final["quality"]["perplexity"] < 1.02 * report.original["quality"]["perplexity"]


def test_a_model_is_deployed_without_any_texts(folder, tmp_path):
    content = {"slim": 1, "model": str(folder / "encoder"), "steps": [{"prune.layers": {"keep": 1}}]}
    report = slim(read_recipe(content | {"deploy": {"precision": "fp32", **DEPLOY}}), tmp_path / "out")
    assert report.final["quality"] == {}
    assert load_model(tmp_path / "out").config.num_hidden_layers == 1


def test_layers_with_equal_weights_are_deployed(tmp_path):
    model = tiny("bert")
    model.bert.encoder.layer[1].load_state_dict(model.bert.encoder.layer[0].state_dict())
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "model")
    content = {"slim": 1, "model": str(tmp_path / "model"), "deploy": {"precision": "int8-dynamic", **DEPLOY}}
    report = slim(read_recipe(content), tmp_path / "out")
    assert report.final["file_bytes"] < report.original["file_bytes"] / 2


def test_a_home_folder_is_not_told_in_the_recipe(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    content = {"slim": 1, "model": "~/encoder", "deploy": {"precision": "fp32", **DEPLOY}}
    report = slim(read_recipe(content), tmp_path / "out")
    assert report.recipe["model"] == "encoder"

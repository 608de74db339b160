"""The card says what the report says, to people and to the Hub."""

import json
import math
import re
from dataclasses import asdict

import numpy as np
import pytest
from huggingface_hub import ModelCard

from optimum_slim.report.card import write_card
from optimum_slim.report.report import Report
from tests.report.conftest import BUDGET, SPEED


@pytest.fixture
def written(tmp_path):
    def write(report):
        write_card(report, tmp_path)
        return ModelCard.load(tmp_path / "README.md")

    return write


def numbers_in(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for one in value for number in numbers_in(one)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_the_measured_quality_is_in_the_model_index(report, written):
    (result,) = written(report).data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", report.final["quality"]["accuracy"])
    assert (result.task_type, result.dataset_name, result.dataset_split) == (report.task, "letters", "test")


def test_each_set_of_texts_has_its_own_results_and_infinity_is_left_out(report, written):
    report.task = "text-generation"
    report.final["quality"] = {"perplexity/novels": 24.3, "agreement/novels": 0.9, "perplexity/mail": math.inf}
    report.original["quality"] = {"perplexity/novels": 24.0, "agreement/novels": 1.0, "perplexity/mail": 11.0}
    card = written(report)
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {"perplexity/novels": 24.3, "agreement/novels": 0.9}
    assert {result.dataset_config for result in card.data.eval_results} == {"novels"}
    assert "| perplexity/mail | 11 |  | **infinite** | all lost |" in card.text
    assert "ORTModelForCausalLM.from_pretrained" in card.text


@pytest.mark.parametrize(
    ("task", "logits", "told"),
    [("text-generation", "last", True), ("text-generation", "all", False), ("text-classification", "last", False)],
)
def test_the_card_says_where_a_decoder_gives_the_last_logits_alone(report, written, task, logits, told):
    report.task = task
    report.recipe["deploy"]["logits"] = logits
    assert ("all_logits=True" in written(report).text) == told


def test_a_local_model_is_named_by_its_folder_and_content_and_not_as_a_hub_model(report, written):
    card = written(report)
    assert card.data.base_model is None
    assert "base_model" not in card.content
    assert "`texts-by-author`" in card.text
    assert report.model["sha256"] in card.text


@pytest.mark.parametrize(("precision", "relation"), [("int8-dynamic", "quantized"), ("fp32", "finetune")])
def test_a_hub_model_is_the_base_model(report, written, precision, relation):
    report.recipe["model"] = "someone/writers@v2"
    report.model |= {"name": "someone/writers", "revision": "0123abcd", "license": "mit"}
    report.recipe["data"]["source"] = "someone/letters"
    report.final["precision"] = precision
    data = written(report).data
    assert (data.base_model, data.base_model_relation, data.datasets) == (
        "someone/writers",
        relation,
        "someone/letters",
    )
    assert data.license == "mit"
    assert data.model_name == "writers-slim"


def test_the_texts_are_named_with_their_content(report, written):
    assert "`letters, test, at most 321 texts of each set` (the texts' sha256: `beefbeef" in written(report).text


def test_a_card_of_the_saved_report_is_the_same_card(report, written, tmp_path):
    report.final["quality"]["accuracy"] = np.float64(0.8625)  # as metrics are before they are saved
    report.final["speedup"] = {name: {q: np.float64(v) for q, v in row.items()} for name, row in SPEED.items()}
    report.write(tmp_path)
    assert written(Report.read(tmp_path)).content == written(report).content


def test_a_run_without_texts_has_no_results(report, written):
    report.recipe["data"]["source"], report.data = None, {}
    for row in (report.original, report.baseline_int8, report.final):
        row["quality"] = {}
    report.steps[0]["quality_torch"] = {}
    card = written(report)
    assert card.data.eval_results is None
    assert "Quality was not measured" in card.text


def test_claims_that_can_be_measured_again_stand_in_the_metadata(report, written):
    claims = written(report).data.to_dict()["slim"]
    assert claims == {
        "file_bytes": report.final["file_bytes"],
        "parameters": report.final["parameters"],
        "speedup_vs_fp32": 3.271,
    }


@pytest.mark.parametrize(
    ("files", "library"),
    [
        ({"config.json": {}}, "transformers"),
        ({"config.json": {}, "modules.json": []}, "sentence-transformers"),
        ({"config.json": {"quantization_config": {"quant_method": "optimum_slim"}}}, "optimum-slim"),
    ],
)
def test_the_library_is_what_loads_the_folder(report, written, tmp_path, files, library):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    card = written(report)
    assert card.data.library_name == library
    assert ("only after `import optimum_slim`" in card.text) == (library == "optimum-slim")


@pytest.mark.parametrize("budget", [{}, BUDGET])
def test_every_number_in_the_text_is_in_the_report_or_follows_from_two_that_are(report, written, budget):
    report.budget = budget
    before, int8, after = report.original, report.baseline_int8, report.final
    known = [*numbers_in(asdict(report)), 95.0, len(report.steps) + 1]
    known += [old[key] / after[key] for old in (before, int8) for key in ("file_bytes", "parameters")]
    known += [100 * (before["quality"]["accuracy"] - after["quality"]["accuracy"])]
    known += range(1, len(report.steps) + 1)
    known += [100 * value for value in (*numbers_in(report.verify), *numbers_in(report.budget))]
    texts = json.dumps(asdict(report))
    for token in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w.])", written(report).text):
        shown = float(token.replace(",", ""))
        digits = len(token.partition("e")[0].partition(".")[2])
        half = 0.5000001 * 10.0 ** (int(token.partition("e")[2] or 0) - digits)
        units = (1, 1e3, 1e6)
        assert token in texts or any(abs(value / unit - shown) <= half for value in known for unit in units), token


def test_what_an_answer_depends_on_is_told_in_words(report, written):
    text = written(report).text
    assert "- An answer depends on what else is in its batch, by up to 0.42 % of the largest output.\n" in text
    assert "- An answer does not depend on how far it is padded, but for rounding.\n" in text
    assert "- An answer does not depend on whether one thread computes it or two, to the last bit.\n" in text
    assert "- No sum of its 20 products of 8-bit integers can overflow, on any CPU.\n" in text
    report.verify["saturating"] = 3
    assert (
        "Sums of 3 of its 20 products of 8-bit integers can overflow on x86 CPUs without VNNI" in written(report).text
    )


def test_a_decoder_is_introduced_with_both_of_its_speeds(report, written):
    point = report.final["latency"][0]
    decode = {"vs_fp32": {"median": 2.21, "low": 2.05, "high": 2.4}, "vs_optimum_int8": SPEED["vs_optimum_int8"]}
    report.final["latency"] = [point | {"phase": "prefill"}, point | {"phase": "decode", "speedup": decode}]
    for row in (report.original, report.baseline_int8):
        row["latency"] = row["latency"][:1] * 2
    opening = " ".join(written(report).text.partition("## Figures")[0].split())
    assert "3.27x (3.01 to 3.52) as fast (prefill of 1 text of 64 tokens, 1 thread) and 2.21x" in opening
    assert opening.endswith("(2.05 to 2.40) as fast (one more token after 1 text of 64 tokens, 1 thread).")


def test_samples_are_shown_on_a_line_each(report, written):
    report.samples = [{"prompt": "It was", "original": "a day\nof `rain`", "final": "a day | of 1,024 drops"}]
    text = written(report).text
    assert "- `It was`\n  - original: `a day of 'rain'`\n  - optimum-slim: `a day / of 1,024 drops`\n" in text
    report.samples = []
    assert "Samples" not in written(report).text


def test_a_report_that_tells_no_such_thing_has_no_such_words(report, written):
    for key in ("batch", "padding", "threads", "products", "saturating"):
        del report.verify[key]
    assert "An answer" not in written(report).text


def test_a_budget_is_told_with_what_was_reached_and_done_for_it(report, written):
    assert "## Budget" not in written(report).text
    report.budget = BUDGET
    text = written(report).text
    assert "- loss of quality on validation, at most 0.03: 0.0212\n" in text
    assert "- speed over fp32, at least 3.25x: 3.27x (3.01 to 3.52)\n" in text
    assert "`bert.encoder.layer.2.output.dense.weight` 44 %, `classifier.weight` 12 %." in text
    assert "As before their zeros, which change most there (likewise):\n`bert.encoder.layer.0" in text
    report.budget = BUDGET | {"speedup": {"wanted": None, "reached": SPEED["vs_fp32"]}, "high": {}, "denser": {}}
    text = written(report).text
    assert "speed over fp32, at least" not in text
    assert "Left in fp32" not in text
    assert "before their zeros" not in text


def test_a_name_cannot_break_out_of_its_line_or_the_metadata(report, written):
    report.model["name"] = report.recipe["model"] = "a`|\nb: {c}\n---\n# d"
    card = written(report)
    assert card.data.model_name == "a`|\nb: {c}\n---\n# d-slim"
    assert card.text.count("\n# ") == 1

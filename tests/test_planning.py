"""Planning foretells every size, finds every mistake, and reads no weight."""

import json

import pytest
from transformers import AlbertConfig

from optimum_slim.errors import RecipeError
from optimum_slim.model.checkpoint import load_model
from optimum_slim.model.shape import shape_of
from optimum_slim.planning import planned
from optimum_slim.recipe import load_recipe, read_recipe, shipped_recipes
from optimum_slim.report.report import parameters_of
from tests.tiny import FAMILIES, cut_vocabulary, save_rows, save_tiny, tiny, tiny_tokenizer, token_batches

FP32 = {"deploy": {"precision": "fp32", "target": {"tokens": [16]}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("planning")


@pytest.fixture(scope="module")
def place(folder):
    """Where a family's model lies, or the texts of a task; each is made when first asked for."""

    def made(name: str) -> str:
        if not (folder / name).exists():
            save_tiny(folder / name, name) if name in FAMILIES else save_rows(folder / name, name)
        return str(folder / name)

    return made


@pytest.fixture(scope="module")
def _unusual(folder):
    """Texts and models that do not fit a tiny classifier."""
    good, bad = {"text": "good w20", "label": 1}, {"text": "bad w30 w40", "label": 5}
    for name in ("test", "validation", "train", "nothing"):
        (folder / f"stars in {name}").mkdir()
        for split in ("train", "validation", "test"):
            row = json.dumps(bad if split == name else good)
            (folder / f"stars in {name}" / f"{split}.jsonl").write_text(f"{row}\n")
    for name in ("train", "validation"):
        (folder / "stars in nothing" / f"{name}.jsonl").unlink()
    (folder / "tables").mkdir()
    (folder / "tables" / "test.csv").write_text("row\nfive\n")
    (folder / "one.jsonl").write_text('{"text": "good"}\n')
    (folder / "pairs.jsonl").write_text('{"premise": "good", "hypothesis": "bad"}\n')
    save_tiny(folder / "gpt2 of 200 words", "gpt2", vocab_size=200)
    save_tiny(folder / "llama of 200 words", "llama", vocab_size=200)
    save_tiny(folder / "llama with more rows", "llama", vocab_size=200)
    tiny_tokenizer("llama").save_pretrained(folder / "llama with more rows")
    save_tiny(folder / "other words", "bert")
    tiny_tokenizer("bert", kept=[*range(9), *range(127, 8, -1)]).save_pretrained(folder / "other words")
    cut = cut_vocabulary(tiny("bert"), range(64))
    for name, kept in (("fewer words", list(range(64))), ("fewer words than told", list(range(63)))):
        cut.config.slim["kept_tokens"] = kept
        cut.save_pretrained(folder / name)
        tiny_tokenizer("bert", 64).save_pretrained(folder / name)


SLICED = {
    "layers": ("bert", "text-classification", [{"prune.layers": {"ratio": 0.5}}]),
    "layers by influence": ("bert", "text-classification", [{"prune.layers": {"keep": 1, "which": "influence"}}]),
    "layers by number": ("llama", "text-generation", [{"prune.layers": {"which": [0, 2]}}]),
    "ffn": ("roberta", "fill-mask", [{"prune.ffn": {"ratio": 0.5}}]),
    "ffn of some": ("bert", "text-classification", [{"prune.ffn": {"ratio": 0.5, "ignore_layers": [-1]}}]),
    "ffn by number": ("opt", "text-generation", [{"prune.ffn": {"keep": 48}}]),
    "ffn with a gate": ("qwen3", "text-generation", [{"prune.ffn": {"ratio": 0.3, "round_to": 1}}]),
    "heads": ("distilbert", "token-classification", [{"prune.heads": {"keep": 3}}]),
    "heads in one projection": ("gpt2", "text-generation", [{"prune.heads": {"ratio": 0.5}}]),
    "heads of some": ("opt", "text-generation", [{"prune.heads": {"ratio": 0.5, "ignore_layers": [0, 2]}}]),
    "heads in groups": ("llama", "text-generation", [{"prune.heads": {"ratio": 0.5}}]),
    "kv heads": ("qwen2", "text-generation", [{"prune.kv_heads": {"ratio": 0.5}}]),
    "kv heads merged": ("mistral", "text-generation", [{"prune.kv_heads": {"keep": 1, "how": "merge"}}]),
    "all together": (
        "xlm-roberta",
        "text-classification",
        [{"prune.layers": {"ratio": 0.5}}, {"prune.heads": {"keep": 1}}, {"prune.ffn": {"ratio": 0.75}}],
    ),
}


@pytest.mark.parametrize(("family", "texts", "steps"), SLICED.values(), ids=SLICED)
def test_predicted_sizes_are_those_of_the_sliced_model(place, family, texts, steps):
    content = {"slim": 1, "model": place(family), "data": {"source": place(texts), "max_length": 16}, "steps": steps}
    plan, model = planned(read_recipe(content | FP32)), load_model(place(family))
    assert (plan.original.parameters, plan.original.shape) == (parameters_of(model), shape_of(model))
    for step in plan.steps:
        step.technique.apply(model, **({"calibration_data": token_batches()} if step.asks else {}))
        assert (step.parameters, step.shape) == (parameters_of(model), shape_of(model))
        assert step.parameters < plan.original.parameters
        assert step.predicted_bytes < plan.original.predicted_bytes


def test_planning_reads_no_weight(tmp_path, place):
    save_tiny(tmp_path / "bert", "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    content = {"slim": 1, "model": str(tmp_path / "bert"), "data": {"source": place("text-classification")}}
    plan = planned(read_recipe(content | {"steps": [{"prune.ffn": {"ratio": 0.5}}]} | FP32))
    assert plan.steps[0].parameters < plan.original.parameters


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_plans_on_a_model_of_its_kind(tmp_path, name):
    family, task = {"encoder": ("bert", "text-classification"), "decoder": ("llama", "text-generation")}[
        name.split("-")[0]
    ]
    model = save_tiny(tmp_path / "model", family, num_hidden_layers=12)
    texts = save_rows(tmp_path / "texts", task, validation=40, test=40)
    plan = planned(load_recipe(name, {"model": str(model), "data.source": str(texts)}))
    assert len(plan.steps) == len(plan.recipe.steps)


TRAIN = {"train": {"labels": 1, "with": ["distill.logits"]}}
RELATE_12_HEADS = {"train": {"with": [{"distill.relations": {"heads": 12}}]}}
FOLLOW_LAYER_9 = {"train": {"with": [{"distill.hidden_states": {"layers": {1: 9}}}]}}
LEFT_HIGH = FP32["deploy"] | {"decided": {"high": {"x.weight": 1.0}}}
DENSER = FP32["deploy"] | {"decided": {"denser": {"classifier.weight": 1.0}}}
TAUGHT = {"steps": [{"train": {"with": ["distill.logits"]}}]}
LABELS = {"steps": [{"train": {"labels": 1}}]}


def augmented(**settings):
    return {"steps": [{"train": {"augment": settings, "with": ["distill.logits"]}}]}


LONG = {"precision": "fp32", "target": {"tokens": [8, 128]}}
LONGER = {"precision": "fp32", "target": {"tokens": [8, 129]}}
REVIEWS, COUNTING = "text-classification", "text-generation"
REFUSED = {
    "no texts to calibrate on": ("bert", None, {"steps": [{"prune.ffn": {"ratio": 0.5}}]}, "steps.0.prune.ffn needs"),
    "no texts to train on": ("bert", None, {"steps": [TRAIN]}, "steps.0.train needs texts: give `data:` a source"),
    "no texts to choose by": ("bert", None, {"deploy": {}}, "deploy.precision: auto needs texts to judge by"),
    "no texts to hold a budget": ("bert", None, {"budget": {"quality_drop": 0.1}}, "budget.quality_drop needs texts"),
    "an unknown weight, left high": (
        "bert",
        None,
        {"deploy": LEFT_HIGH},
        "deploy.decided.high: 'x.weight' is no weight",
    ),
    "a dense weight, made denser": (
        "bert",
        None,
        {"deploy": DENSER},
        "'classifier.weight' is no sparse weight of the sl",
    ),
    "no train split": ("bert", "stars in nothing", {"steps": [TRAIN]}, "steps.0.train needs a train split"),
    "no such texts": ("bert", None, {"data": {"source": "./nowhere"}}, "./nowhere"),
    "no such model": ("bert", None, {"model": "./nowhere"}, "there is no folder ./nowhere"),
    "no such teacher": ("bert", None, {"teacher": "./nowhere"}, "there is no folder ./nowhere"),
    "another head": ("bert", None, {"task": "text-generation"}, "the model is a BertForSequenceClassification"),
    "no loss of its own": ("xlm-roberta", REVIEWS, {"steps": [{"train": {"labels": 1}}]}, "an embedder has no loss"),
    "norms behind": (
        "bert",
        REVIEWS,
        {"steps": [{"prune.layers": {"keep": 1, "refit": True}}]},
        "steps.0.prune.layers: refit: this model's norms come behind",
    ),
    "no such layer": ("bert", None, {"steps": [{"prune.layers": {"which": [7]}}]}, "there is no layer 7; the model"),
    "no such ignored layer": (
        "bert",
        REVIEWS,
        {"steps": [{"prune.ffn": {"ratio": 0.5, "ignore_layers": [0, 3]}}]},
        "ignore_layers: 3 is none of the 3 layers, which are 0 to 2, or -3 to -1",
    ),
    "no kv heads": ("bert", REVIEWS, {"steps": [{"prune.kv_heads": {"keep": 1}}]}, "use prune.heads"),
    "nothing removed": ("bert", REVIEWS, {"steps": [{"prune.ffn": {"ratio": 0.01}}]}, "it removes nothing from this"),
    "no such text column": ("bert", REVIEWS, {"data": {"text": "txet"}}, "no column 'txet'; the columns are text, lab"),
    "no such label column": ("bert", REVIEWS, {"data": {"label": "gold"}}, "there is no column 'gold'"),
    "no text column": ("bert", "tables", {}, "say which column holds the texts; the columns are row"),
    "no labels to judge by": ("bert", COUNTING, {}, "data.label: no column of labels was found"),
    "an unknown label": ("bert", "stars in test", {}, "is 5; the model's labels are LABEL_0, LABEL_1"),
    "an unknown label where precision is judged": ("bert", "stars in validation", {"deploy": {}}, "is 5; the model's"),
    "an unknown label that is learned": ("bert", "stars in train", {"steps": [TRAIN]}, "is 5; the model's labels are"),
    "too little to judge by": ("llama", COUNTING, {"data": {"max_length": 2000}}, "shorter than one block"),
    "texts longer than positions": ("bert", REVIEWS, {"data": {"max_length": 129}}, "data.max_length: 129 is more"),
    "texts longer than roberta's": ("roberta", None, {"data": {"max_length": 129}}, "the model's 128 positions"),
    "a target longer than positions": ("bert", None, {"deploy": LONGER}, "deploy.target.tokens: 129 is more than the"),
    "no position for the token after": ("gpt2", None, {"deploy": LONG}, "deploy.target.tokens: "),
    "a teacher of other words": ("bert", REVIEWS, {"teacher": "gpt2 of 200 words", "steps": [TRAIN]}, "teacher: "),
    "a teacher of unlike words": (
        "bert",
        REVIEWS,
        {"teacher": "other words"} | TAUGHT,
        "vocabulary is another one",
    ),
    "a teacher of more words": (
        "llama",
        COUNTING,
        {"teacher": "llama of 200 words"} | TAUGHT,
        "72 tokens that",
    ),
    "a teacher of fewer words": (
        "bert",
        REVIEWS,
        {"teacher": "fewer words"} | TAUGHT,
        "it lacks 64 of the model's",
    ),
    "kept tokens that are too few": ("fewer words than told", REVIEWS, TAUGHT, "must list 64 different ids"),
    "no such extra texts": (
        "bert",
        REVIEWS,
        {"data": {"extra": ["./nowhere"]}} | TAUGHT,
        "data.extra: ./nowhere is",
    ),
    "extra texts of pairs": (
        "bert",
        REVIEWS,
        {"data": {"extra": ["pairs.jsonl"]}} | TAUGHT,
        "those of train in",
    ),
    "extra texts for nobody": ("bert", REVIEWS, {"data": {"extra": ["one.jsonl"]}} | LABELS, "no step asks a teacher"),
    "a decoder's texts changed": ("llama", COUNTING, augmented(), "augment: text-generation learns the very words"),
    "a masked model's texts changed": ("roberta", COUNTING, augmented(), "augment: fill-mask learns the very words"),
    "no such masked model": (
        "bert",
        REVIEWS,
        augmented(masked_lm="./nowhere"),
        "augment: there is no folder",
    ),
    "no masked model": (
        "bert",
        REVIEWS,
        augmented(masked_lm="demo"),
        "not a masked language model",
    ),
    "vectors that heads do not divide": ("bert", REVIEWS, {"steps": [RELATE_12_HEADS]}, "heads: 12 relation heads do"),
    "a teacher without the layer": ("bert", REVIEWS, {"steps": [FOLLOW_LAYER_9]}, "layers: "),
}


@pytest.mark.usefixtures("_unusual")
@pytest.mark.parametrize(("family", "texts", "change", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_run_is_refused_with_a_reason(place, family, texts, change, told):
    data = {"source": texts and place(texts), "max_length": 64}
    if "extra" in change.get("data", {}):
        named = [name if name[0] == "." else place(name) for name in change["data"]["extra"]]
        change = change | {"data": change["data"] | {"extra": named}}
    content = {"slim": 1, "model": place(family)} | FP32 | change | {"data": data | change.get("data", {})}
    if change.get("teacher", ".")[0] != ".":
        content["teacher"] = place(change["teacher"])
    with pytest.raises(RecipeError) as caught:
        planned(read_recipe(content))
    assert len(caught.value.mistakes) == 1
    assert told in caught.value.mistakes[0]


TEACHERS = {
    "one with more tokens": ("fewer words", REVIEWS, "bert"),
    "one with rows that pad": ("llama", COUNTING, "llama with more rows"),
}


@pytest.mark.usefixtures("_unusual")
@pytest.mark.parametrize(("model", "texts", "teacher"), TEACHERS.values(), ids=TEACHERS)
def test_a_teacher_of_another_vocabulary_size_may_teach(place, model, texts, teacher):
    content = {"slim": 1, "model": place(model), "teacher": place(teacher), "data": {"source": place(texts)}}
    plan = planned(read_recipe(content | {"data": content["data"] | {"max_length": 16}} | TAUGHT | FP32))
    assert plan.teacher_folder.name == teacher


def test_a_family_without_anatomy_is_refused_with_those_that_have_one(tmp_path):
    AlbertConfig(architectures=["AlbertModel"]).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="'albert' are not supported; these are: bert, roberta"):
        planned(read_recipe({"slim": 1, "model": str(tmp_path)} | FP32))


def test_no_model_is_told_with_where_to_name_one():
    with pytest.raises(RecipeError, match="name a folder or Hub id under `model`, or with --model"):
        planned(read_recipe({"slim": 1}))


def test_everything_that_stands_in_the_way_is_told_at_once(place):
    steps = [{"prune.ffn": {"ratio": 0.01}}, {"prune.kv_heads": {"keep": 1}}, {"prune.layers": {"which": [9]}}, TRAIN]
    data = {"source": place("stars in nothing"), "label": "gold", "max_length": 200}
    content = {"slim": 1, "model": place("bert"), "teacher": "./nowhere", "data": data, "steps": steps} | FP32
    with pytest.raises(RecipeError) as caught:
        planned(read_recipe(content))
    told = "\n".join(caught.value.mistakes)
    for part in (
        "no folder ./nowhere", "no column 'gold'", "data.max_length: 200", "steps.0.prune.ffn needs a train split",
        "steps.1.prune.kv_heads needs a train split", "steps.3.train needs a train split",
        "steps.0.prune.ffn: it removes nothing", "steps.1.prune.kv_heads: bert", "steps.2.prune.layers: which",
    ):  # fmt: skip
        assert part in told
    assert len(caught.value.mistakes) == 9

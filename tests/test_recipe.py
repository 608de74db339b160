"""Recipes are read strictly: every mistake is found, all are told at once, and nothing in a file is executed."""

import dataclasses
import sys
import tracemalloc
from pathlib import Path

import pytest
import yaml

from optimum_slim.deploy.budget import Budget
from optimum_slim.errors import RecipeError
from optimum_slim.recipe import Recipe, load_recipe, read_recipe, shipped_recipes
from optimum_slim.techniques import BUILT_IN, technique_class, technique_names
from optimum_slim.techniques.distill.logits import DistillLogits
from optimum_slim.techniques.prune.ffn import PruneFFN
from optimum_slim.techniques.prune.layers import PruneLayers
from optimum_slim.techniques.train import Train
from optimum_slim.training.cache import TeacherCache

EVERYTHING = """
slim: 1
model: org/name@main
task: text-classification
data: {source: texts, text: [premise, hypothesis], label: gold, sets: {austen: "austen.*"}, limit: 10}
steps:
  - prune.layers: {which: [0, 2]}
  - prune.heads: {keep: 2}
  - prune.ffn: {ratio: 0.5, refit: false}
  - prune.kv_heads: {ratio: 0.5, how: merge}
  - train:
      learning_rate: 2e-4
      freeze: [embeddings, head]
      with:
        - distill.logits: {temperature: 2}
        - distill.hidden_states: {layers: {1: 2}}
deploy: {precision: int8-weights, target: {tokens: [16, 32]}, max_quality_loss: null}
budget: {quality_drop: 1e-2, speedup: 5}
seed: 3
"""


@pytest.fixture
def read(tmp_path):
    """Reads a recipe from its text, through a file."""

    def from_text(text: str | bytes, **overrides: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(str(path), overrides)

    return from_text


def test_a_recipe_is_read_whole(read):
    recipe = read(EVERYTHING)
    assert recipe.steps[0] == PruneLayers(which=[0, 2])
    assert recipe.steps[2] == PruneFFN(ratio=0.5, refit=False)
    assert recipe.steps[4].with_[0] == DistillLogits(temperature=2.0)
    assert recipe.steps[4].with_[1].layers == {1: 2}
    assert (recipe.data.text, recipe.data.sets) == (["premise", "hypothesis"], {"austen": "austen.*"})
    assert recipe.budget == Budget(quality_drop=0.01, speedup=5.0)
    assert (recipe.deploy.target.tokens, recipe.deploy.max_quality_loss, recipe.seed) == ([16, 32], None, 3)


def test_a_number_in_short_scientific_notation_is_a_number(read):
    assert read("slim: 1\nsteps: [train: {learning_rate: 2e-4, labels: 1}]").steps == (
        Train(learning_rate=2e-4, labels=1.0),
    )


@pytest.mark.parametrize(
    ("setting", "kept"),
    [("true", TeacherCache()), ("{top: 9}", TeacherCache(9)), ("false", None), ("{}", TeacherCache())],
)
def test_a_cache_is_switched_on_or_given_its_settings(read, setting, kept):
    recipe = read(f"slim: 1\nsteps: [train: {{teacher_cache: {setting}, with: [distill.logits]}}]")
    assert recipe.steps[0].cache == kept
    assert read_recipe(recipe.complete()) == recipe


def test_a_technique_without_settings_is_just_its_name(read):
    assert read("slim: 1\nsteps: [train: {labels: 1, with: [distill.logits]}]").steps[0].with_ == (DistillLogits(),)


TAUGHT = "steps: [train: {{with: [distill.logits], {}}}]"
MISTAKES = {
    "unknown key": ("data: {souce: x}", "data.souce: there is no such key; did you mean 'source'?"),
    "unknown key at the top": ("stesp: []", "stesp: there is no such key; did you mean 'steps'?"),
    "unknown setting": ("steps: [prune.ffn: {ration: 0.5}]", "steps.0.prune.ffn.ration: there is no such key; did you"),
    "text for a number": ("seed: many", "seed: must be a whole number, not 'many'"),
    "fraction for a whole number": ("seed: 1.5", "seed: must be a whole number, not 1.5"),
    "truth for a number": ("threads: true", "threads: must be a whole number, not True"),
    "number for text": ("model: 3", "model: must be text, not 3"),
    "number for truth": ("steps: [prune.ffn: {ratio: 0.5, refit: 1}]", "refit: must be true or false, not 1"),
    "text for a list": ("deploy: {target: {tokens: 128}}", "deploy.target.tokens: must be a list, not 128"),
    "list for a mapping": ("data: [a]", "data: must be a mapping of settings, not ['a']"),
    "infinite number": ("steps: [train: {labels: .inf}]", "steps.0.train.labels: must be a "),
    "number that is none": ("steps: [train: {labels: 1, learning_rate: .nan}]", "train.learning_rate: must be a "),
    "no such choice": ("deploy: {precision: int8-dynamics}", "not 'int8-dynamics'; did you mean 'int8-dynamic'?"),
    "budget of nothing": ("budget: {}", "budget.give quality_drop, speedup or both"),
    "negative drop": ("budget: {quality_drop: -0.01}", "budget.quality_drop must be at least 0, not -0.01"),
    "no speed": ("budget: {speedup: 0}", "budget.speedup must be above 0, not 0.0"),
    "unknown budget": ("budget: {sped: 5}", "budget.sped: there is no such key; did you mean 'speedup'?"),
    "decided high list": ("deploy: {decided: {high: [w]}}", "deploy.decided.high must map weights to numbers, not be"),
    "schema of the future": ("slim: 2", "slim: must be one of 1; not 2"),
    "ratio above 1": ("steps: [prune.ffn: {ratio: 1.5}]", "prune.ffn.ratio must be at least 0 and below 1, not"),
    "ratio and keep": ("steps: [prune.ffn: {ratio: 0.5, keep: 4}]", "steps.0.prune.ffn.give either ratio"),
    "neither ratio nor keep": ("steps: [prune.ffn]", "give either ratio"),
    "unknown technique": ("steps: [prune.fnn: {ratio: 0.5}]", "no technique 'prune.fnn'; did you mean 'prune.ffn'?"),
    "trained among steps": ("steps: [distill.logits]", "steps.0: distill.logits works while training"),
    "step among trained": ("steps: [train: {with: [prune.ffn: {ratio: 0.5}]}]", "prune.ffn stands among `steps`"),
    "two techniques in one": ("steps: [{prune.ffn: {ratio: 0.5}, train: {labels: 1}}]", "steps.0: must be one"),
    "settings that are none": ("steps: [prune.ffn: 0.5]", "steps.0.prune.ffn: must be a mapping of settings, not 0.5"),
    "nothing to learn from": ("steps: [train]", "steps.0.train.there is nothing to learn from"),
    "one source for a list": ("data: {extra: ./more}", "data.extra: must be a list, not './more'"),
    "changed texts with labels alone": ("steps: [train: {labels: 1, augment: {}}]", "augment changes texts, so"),
    "no copies": (TAUGHT.format("augment: {copies: 0}"), "train.augment.copies must be at least 1, not 0"),
    "nothing changes": (TAUGHT.format("augment: {share: 0}"), "train.augment.share must be above 0 and at most 1, not"),
    "a cache of nobody": ("steps: [train: {labels: 1, teacher_cache: true}]", "teacher_cache: nothing under with asks"),
    "a cache of new texts": (TAUGHT.format("teacher_cache: true, noise: 0.2"), "teacher_cache: noise makes new"),
    "a cache of nothing": (TAUGHT.format("teacher_cache: {top: 0}"), "teacher_cache.top must be at least 1, not 0"),
    "a cache of more than logits": (
        "steps: [train: {teacher_cache: {top: 9}, with: [distill.logits, distill.relations]}]",
        "teacher_cache: with.1 needs more of the teacher than its logits",
    ),
    "texts outside the source": ("data: {sets: {a: ../secret.txt}}", "data.sets.a: '../secret.txt' must be a pattern"),
    "absolute texts": ("data: {sets: {a: /etc/passwd}}", "data.sets.a: '/etc/passwd' must be a pattern"),
    "texts above a folder": ("data: {sets: {a: x/../../y}}", "data.sets.a: 'x/../../y' must be a pattern"),
    "no tokens": ("deploy: {target: {tokens: []}}", "deploy.target.tokens must list numbers from 1 up"),
    "unknown decision": ("deploy: {decided: {precision: int2}}", "deploy.decided.precision must be one of"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_key_and_what_would_be_right(read, line, told):
    with pytest.raises(RecipeError) as caught:
        read(line if line.startswith("slim") else f"slim: 1\n{line}")
    assert len(caught.value.mistakes) == 1
    assert told in caught.value.mistakes[0]


def test_all_mistakes_are_in_one_message(read):
    with pytest.raises(RecipeError, match="has 5 mistakes") as caught:
        read("{seed: x, data: {limit: -1}, steps: [prune.ffn: {ratio: 2}, nothing]}")
    for told in ("slim: the schema version is missing", "seed: must", "data.limit must", "ratio must", "'nothing'"):
        assert told in str(caught.value)


UNREADABLE = {
    "a key twice": ("slim: 1\nseed: 1\nseed: 2", "'seed' stands twice"),
    "a setting twice": ("slim: 1\nsteps: [prune.ffn: {ratio: 0.1, ratio: 0.2}]", "'ratio' stands twice"),
    "a list": ("- slim", "must be a mapping that starts with `slim: 1`"),
    "nothing": ("", "must be a mapping that starts with `slim: 1`"),
    "not UTF-8": (b"slim: 1\nmodel: \xff\xfe", "not YAML that can be read"),
    "not YAML": ("slim: [1", "not YAML that can be read"),
    "two documents": ("slim: 1\n---\nslim: 1", "not YAML that can be read"),
    "nested without end": ("[" * 5000, "not YAML that can be read"),
}


@pytest.mark.parametrize(("text", "told"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_is_no_recipe_is_refused(read, text, told):
    with pytest.raises(RecipeError, match=told):
        read(text)


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/name:os.mkdir"])
def test_a_tag_of_python_is_refused_and_nothing_is_executed(read, tmp_path, tag):
    with pytest.raises(RecipeError, match="could not determine a constructor"):
        read(f"slim: 1\nmodel: !!{tag} [{tmp_path / 'made'}]")
    assert not (tmp_path / "made").exists()


def test_aliases_that_multiply_are_refused_without_being_written_out(read):
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 6)]
    tracemalloc.start()
    with pytest.raises(RecipeError, match="a5: there is no such key"):
        read("\n".join(["slim: 1", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]", *lines, "seed: *a5"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_a_name_that_is_no_recipe_is_told_with_one_that_is():
    with pytest.raises(RecipeError, match="did you mean 'encoder-fast'"):
        load_recipe("encoder-fats")


OVERRIDES = {
    "a key": ("seed", "5", lambda r: r.seed == 5),
    "a key in a mapping": ("data.max_length", "64", lambda r: r.data.max_length == 64),
    "a key in a mapping that the recipe lacks": ("deploy.sparse", "never", lambda r: r.deploy.sparse == "never"),
    "a list": ("deploy.target.tokens", "[8, 16]", lambda r: r.deploy.target.tokens == [8, 16]),
    "through a technique's name": ("steps.1.keep", "1", lambda r: r.steps[1].keep == 1),
    "through two techniques": ("steps.4.with.0.temperature", "3", lambda r: r.steps[4].with_[0].temperature == 3),
    "a short number": ("steps.4.learning_rate", "1e-5", lambda r: r.steps[4].learning_rate == 1e-5),
    "null": ("data.limit", "null", lambda r: r.data.limit is None),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "holds"), OVERRIDES.values(), ids=OVERRIDES)
def test_an_override_changes_what_its_path_names_and_nothing_else(read, key, value, holds):
    changed, before = read(EVERYTHING, **{key: value}), read(EVERYTHING)
    assert holds(changed)
    different = [f.name for f in dataclasses.fields(Recipe) if getattr(changed, f.name) != getattr(before, f.name)]
    assert different == [key.split(".")[0]]


def test_an_override_reaches_a_technique_that_stands_as_its_name(read):
    recipe = read("slim: 1\nsteps: [prune.ffn, train: {with: [distill.logits]}]",
                  **{"steps.0.ratio": "0.5", "steps.1.with.0.weight": "2"})  # fmt: skip
    assert recipe.steps[0].ratio == 0.5
    assert recipe.steps[1].with_[0].weight == 2


BAD_OVERRIDES = {
    "no such step": ("steps.9.ratio", "0.5", "--set steps.9.ratio: there is nothing at '9'"),
    "below a number": ("seed.x", "1", "--set seed.x: there is nothing at 'seed'"),
    "a step itself": ("steps.0", "prune.ffn", "--set steps.0: '0' is not a key there"),
    "not a number": ("steps.first.ratio", "0.5", "--set steps.first.ratio: there is nothing at 'first'"),
    "below a number of a list": ("steps.0.which.0.x", "1", "--set steps.0.which.0.x: there is nothing at '0'"),
    "an unknown key": ("data.max_lenght", "64", "data.max_lenght: there is no such key; did you mean 'max_length'?"),
    "not YAML": ("seed", "[1", "--set seed: "),
    "a tag of Python": ("model", "!!python/name:os.mkdir", "--set model: could not determine a constructor"),
}


@pytest.mark.parametrize(("key", "value", "told"), BAD_OVERRIDES.values(), ids=BAD_OVERRIDES)
def test_an_override_that_leads_nowhere_is_a_mistake(read, key, value, told):
    with pytest.raises(RecipeError) as caught:
        read(EVERYTHING, **{key: value})
    assert told in str(caught.value)


@pytest.mark.parametrize("text", [EVERYTHING, "slim: 1", *map(Path.read_text, shipped_recipes().values())])
def test_a_completed_recipe_is_read_back_equal(read, text):
    recipe = read(text)
    assert read_recipe(recipe.complete()) == recipe
    assert read(yaml.safe_dump(recipe.complete(), sort_keys=False)) == recipe


def test_a_completed_recipe_names_every_default(read):
    content = read("slim: 1\nsteps: [train: {labels: 1}]").complete()
    assert list(content) == [field.name for field in dataclasses.fields(Recipe)]
    assert content["steps"][0]["train"]["with"] == []
    assert content["deploy"]["target"] == {"tokens": [128], "batch": [1], "threads": [1]}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_technique_stands_in_the_file_that_its_name_tells(name):
    assert technique_class(name).__module__ == f"optimum_slim.techniques.{name}"


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """A distribution of someone else, on the path, that adds techniques."""
    (tmp_path / "acme_slim.py").write_text(
        '"""Double all biases."""\n'
        "from dataclasses import dataclass\n"
        "from optimum_slim import Technique, Trained\n\n"
        "@dataclass(frozen=True)\n"
        "class Double(Technique):\n"
        "    times: int = 1  # how often\n\n"
        "    def apply(self, model, seed):\n"
        "        pass\n\n"
        "@dataclass\n"
        "class Shrink(Trained):\n"
        "    weight: float = 1.0\n\n"
        "    def loss(self, student, teacher, batch):\n"
        "        return self.weight * student.logits.square().mean()\n"
    )
    info = tmp_path / "acme_slim-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-slim\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[optimum_slim.techniques]\nacme.shrink = acme_slim:Shrink\nacme.double = acme_slim:Double\n"
        "prune.ffn = acme_slim:Double\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("acme_slim", None)


@pytest.mark.usefixtures("third_party")
def test_a_technique_of_another_distribution_works_in_a_recipe(read):
    assert technique_names() == [*BUILT_IN, "acme.double", "acme.shrink"]
    recipe = read("slim: 1\nsteps: [acme.double: {times: 2}, train: {with: [acme.shrink]}]")
    assert recipe.steps[0].times == 2
    assert recipe.steps[0].asks() == ("seed",)
    assert read_recipe(recipe.complete()) == recipe
    with pytest.raises(RecipeError, match=r"did you mean 'acme\.double'"):
        read("slim: 1\nsteps: [acme.duoble]")


@pytest.mark.usefixtures("third_party")
def test_another_distribution_cannot_take_a_name_of_ours(read):
    assert read("slim: 1\nsteps: [prune.ffn: {ratio: 0.5}]").steps == (PruneFFN(ratio=0.5),)

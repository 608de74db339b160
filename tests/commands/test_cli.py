"""The command line: examples in every help, one message for a mistake, exit codes, and no import that costs time."""

import json
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import yaml

import optimum_slim
from optimum_slim.commands.plan import PlanCommand
from optimum_slim.commands.run import ended
from optimum_slim.commands.slim import SlimCommand
from optimum_slim.kernels.library import library_path
from optimum_slim.model.checkpoint import load_model
from optimum_slim.planning import planned
from optimum_slim.recipe import load_recipe, shipped_recipes
from optimum_slim.techniques import technique_names
from tests.commands.conftest import parsed
from tests.test_flow import save_delicate
from tests.tiny import save_rows, save_tiny

CLI = Path(sys.executable).with_name("optimum-cli")
QUICK = {"steps": [{"prune.layers": {"keep": 1}}], "deploy": {"precision": "fp32", "target": {"tokens": [16]}}}
VERBS = [command.name for command in SlimCommand.SUBCOMMANDS]
HEAVY = {"torch", "transformers", "onnxruntime", "datasets", "sklearn"}


def cli(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess:
    """Runs `optimum-cli slim` and expects its exit code."""
    done = subprocess.run([CLI, "slim", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, its texts, and a recipe that names neither."""
    root = tmp_path_factory.mktemp("cli")
    save_tiny(root / "model", "bert")
    save_rows(root / "texts", "text-classification")
    (root / "quick.yaml").write_text(yaml.safe_dump({"slim": 1, "data": {"max_length": 16, "limit": 8}} | QUICK))
    return root


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_examples_that_can_be_typed(verb):
    text = cli(verb, "--help").stdout
    assert "examples:\n" in text
    for line in text.partition("examples:\n")[2].partition("\n\n")[0].strip().splitlines():
        assert line.strip().startswith(f"optimum-cli slim {verb}")
        parsed(*line.split()[2:])


def test_the_group_of_verbs_has_help():
    assert set(VERBS) >= {"run", "plan", "list"}
    for told in (cli("--help").stdout, cli().stdout):
        assert "{" + ",".join(VERBS) + "}" in told


@pytest.mark.parametrize("arguments", [[], ["slim"], ["slim", "run"]], ids=["optimum-cli", "slim", "run"])
def test_help_imports_nothing_heavy(arguments):
    program = (
        "import sys\n"
        f"sys.argv = {['optimum-cli', *arguments, '--help']}\n"
        "from optimum.commands.optimum_cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    print(*sorted(name for name in sys.modules if '.' not in name))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "optimum_slim" in loaded
    assert not loaded & HEAVY


def test_importing_the_package_imports_nothing_heavy():
    program = "import optimum_slim, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY


@pytest.mark.parametrize("name", optimum_slim.__all__)
def test_a_public_name_can_be_imported(name):
    assert getattr(optimum_slim, name).__name__ == name
    assert name in dir(optimum_slim)


def test_a_name_that_is_not_public_is_told():
    with pytest.raises(AttributeError, match="has no attribute 'slimmer'"):
        _ = optimum_slim.slimmer


def test_list_names_every_technique_and_recipe(here):
    found = json.loads(here("list", "--json").stdout)
    assert [row["name"] for row in found["techniques"]] == technique_names()
    assert [row["name"] for row in found["recipes"]] == list(shipped_recipes())
    for row in found["techniques"] + found["recipes"]:
        assert len(row["what"]) > 20
    assert all(row["helps"] for row in found["techniques"])


@pytest.mark.skipif(library_path() is None, reason="the kernels are not built here")
def test_kernels_tells_what_runs_here_and_that_it_computes_right(here):
    found = json.loads(here("kernels", "--json").stdout)
    assert found["chosen"] == found["supported"][0]
    assert found["supported"][-1] == "portable"
    assert set(found["self_test"]) == set(found["supported"])
    assert all(found["self_test"].values())


def test_without_kernels_it_is_told_what_to_do(here, monkeypatch):
    monkeypatch.setattr("optimum_slim.kernels.library.library_path", lambda: None)
    assert "Reinstall optimum-slim where a C++ compiler is found" in here("kernels", code=2).stderr


def test_plan_tells_what_planning_found(here, folder):
    given = ["plan", folder / "quick.yaml", "--model", folder / "model", "--data", folder / "texts"]
    found = json.loads(here(*given, "--json").stdout)
    source = {"model": str(folder / "model"), "data.source": str(folder / "texts")}
    plan = planned(load_recipe(str(folder / "quick.yaml"), source))
    assert (found["task"], found["model_type"]) == ("text-classification", "bert")
    assert not found["streamed"]
    assert [(row["step"], row["parameters"]) for row in found["steps"]] == [
        ("original", plan.original.parameters),
        ("prune.layers", plan.steps[0].parameters),
    ]


def test_run_writes_the_folder_and_tells_its_figures(here, folder, tmp_path):
    given = ["run", folder / "quick.yaml", "--model", folder / "model", "-o", tmp_path / "out"]
    told = cli(*given, "--set", "steps.0.keep=2").stdout
    assert load_model(tmp_path / "out").config.num_hidden_layers == 2
    for line in ("step 1 of 1: prune.layers", "optimum int8", "over fp32"):
        assert line in told

    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    done = here(*given, code=2)
    assert done.stderr.startswith("error: the output ")
    assert "--overwrite" in done.stderr
    assert "Traceback" not in done.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_a_mistake_is_told_in_one_message_with_exit_code_2(folder, tmp_path):
    given = ["run", folder / "quick.yaml", "--set", "seed=x", "--set", "steps.0.kepe=2", "-o", tmp_path / "out"]
    done = cli(*given, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "seed: must be a whole number, not 'x'" in done.stderr
    assert "steps.0.prune.layers.kepe: there is no such key; did you mean 'keep'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_debug_shows_where_an_error_came_from_with_the_same_exit_code(here):
    done = here("plan", "encoder-fats", "--debug", code=2)
    assert "Traceback" in done.stderr
    assert "did you mean 'encoder-fast'?" in done.stderr


def test_a_result_that_is_not_good_enough_has_exit_code_1(folder, tmp_path):
    save_delicate(tmp_path / "model")
    save_rows(tmp_path / "texts", "text-generation")
    given = ["run", folder / "quick.yaml", "--model", tmp_path / "model", "--data", tmp_path / "texts"]
    done = cli(*given, "--set", "deploy.precision=int8-dynamic", "-o", tmp_path / "out", code=1)
    assert done.stderr.startswith("error: deploy.max_quality_loss: on validation int8-dynamic loses")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_a_run_that_goes_on(folder, tmp_path):
    steps = "steps=[prune.layers: {keep: 2}, train: {max_steps: 1000000, labels: 1}]"
    given = ["run", folder / "quick.yaml", "--model", folder / "model", "--data", folder / "texts", "--set", steps]
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with subprocess.Popen([CLI, "slim", *given, "-o", tmp_path / "out"], stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, heeded)
        try:
            while process.poll() is None and not (tmp_path / "out.partial" / "training-02").exists():
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    assert "stopped; the same command goes on from where it was" in told
    assert "Traceback" not in told
    assert (tmp_path / "out.partial" / "step-01" / "model.safetensors").exists()
    assert not (tmp_path / "out").exists()


class Last:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def watched():
    return weakref.ref(Last(), lambda _: signal.raise_signal(signal.SIGINT))


@pytest.mark.parametrize("end", [Last, watched], ids=["__del__", "a weak reference"])
def test_ctrl_c_is_heard_where_python_ignores_it(end, monkeypatch, capsys):
    worked = []

    def work(verb):
        nobody = end()
        del nobody
        worked.append(True)
        for _ in range(1000):
            time.sleep(0.01)

    monkeypatch.setattr(PlanCommand, "work", work)
    hook = sys.unraisablehook
    with pytest.raises(SystemExit) as ended:
        parsed("plan", "encoder-fast").run()
    assert ended.value.code == 130
    assert worked
    assert capsys.readouterr().err == "stopped\n"
    assert sys.unraisablehook is hook


def test_quiet_tells_the_result_alone(folder, tmp_path):
    given = ["run", folder / "quick.yaml", "--model", folder / "model", "-o", tmp_path / "out"]
    done = cli(*given, "--quiet")
    assert done.stdout.startswith(f"{tmp_path / 'out'}: fp32")
    assert "step 1" not in done.stdout
    assert done.stderr == ""


def test_an_argument_that_is_missing_has_exit_code_2():
    assert "required: -o/--output" in cli("run", "encoder-fast", code=2).stderr


@pytest.mark.parametrize("pair", ["seed", "=5", ""])
def test_a_pair_that_is_none_is_told_with_an_example(pair):
    with pytest.raises(optimum_slim.SlimError, match="write it as key=value"):
        parsed("plan", "encoder-fast", "--set", pair).recipe()


@pytest.mark.parametrize("name", ["model", "a folder", 'say "hi"', "a\\n", "null", "1.5", "a: b", "#1", "'", "ü"])
def test_a_folder_may_have_any_name(name):
    recipe = parsed("plan", "encoder-fast", "--model", name, "--data", name).recipe()
    assert (recipe.model, recipe.data.source) == (name, name)


@pytest.mark.parametrize(
    ("codes", "code", "told"),
    [
        ({0: 2}, 2, ""),
        ({0: 2, 1: -15}, 2, ""),
        ({0: -15, 1: 2}, 2, ""),
        ({0: 2, 1: -9}, 2, ""),
        ({0: 1, 1: -9}, 1, "process 1 was ended by SIGKILL"),
        ({0: -9, 1: 1}, 1, "process 0 was ended by SIGKILL"),
        ({0: -15, 1: -9}, 1, "process 1 was ended by SIGKILL"),
        ({1: -15}, 1, "process 1 was ended by SIGTERM"),
    ],
)
def test_several_processes_end_as_the_one_that_failed(codes, code, told):
    found, message = ended(codes)
    assert found == code
    assert message.startswith(told)
    assert bool(message) == bool(told)

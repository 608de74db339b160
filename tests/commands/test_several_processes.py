"""Runs in several processes, through the real command lines: the losses of one, the same bytes after a kill, two
machines, weights spread over processes, and one message for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.tiny import save_rows, save_tiny

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
WITH = ["distill.logits", "distill.hidden_states", "distill.relations", "distill.attentions"]
TRAIN = {"epochs": 7, "batch_size": 8, "learning_rate": 1e-3, "noise": 0.2, "with": WITH}
RECIPE = {
    "slim": 1,
    "threads": 1,
    "model": "model",
    "data": {"source": "texts", "max_length": 16},
    "steps": [{"prune.layers": {"ratio": 0.3}}, {"sparsify.magnitude": {"pattern": "4x1"}}, {"train": TRAIN}],
    "deploy": {"precision": "fp32", "max_quality_loss": None, "target": {"tokens": [16]}},
}
LAUNCH = ["--mixed_precision", "no", "--dynamo_backend", "no"]
TWO = ["--multi_gpu", "--num_processes", "2", "--num_machines", "2", "--main_process_ip", "127.0.0.1"]
FSDP = [
    "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--num_processes", "2",
    "--num_machines", "1", "--main_process_port", "0",
]  # fmt: skip
FAR = """
from optimum.commands.optimum_cli import main
from optimum_slim import company
from optimum_slim.workspace import Visit

class Far(Visit):
    '''Sees no folder of the first process, as on a machine of its own.'''
    def __init__(self, place, sign):
        super().__init__(place, "another sign")

company.Visit = Far
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, texts that do not fill whole batches, a recipe, and the outputs that tests compare with."""
    root = tmp_path_factory.mktemp("several")
    save_tiny(root / "model", "bert")
    save_rows(root / "texts", "text-classification", train=61)
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return root


def slim(output: str, *arguments: str) -> list[str]:
    return ["slim", "run", "recipe.yaml", "-o", output, "--quiet", *arguments]


def alone(output: str, *arguments: str) -> list[str | Path]:
    return [BIN / "optimum-cli", *slim(output, *arguments)]


def launched(output: str, *options: str, script: tuple[str, ...] = ("-m", "optimum.commands.optimum_cli")) -> list:
    return [BIN / "accelerate", "launch", *LAUNCH, *options, *script, *slim(output)]


def started(place: Path, command: list) -> subprocess.Popen:
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=place, env=os.environ | offline, **pipes)


def run(place: Path, command: list, code: int = 0) -> str:
    """Runs to the end, expects the exit code, and returns what was told of errors."""
    with started(place, command) as process:
        _, told = process.communicate(timeout=300)
    assert process.returncode == code, told
    return told


def report(output: Path) -> dict:
    return json.loads((output / "slim_report.json").read_text())


def losses(output: Path) -> list[float]:
    return report(output)["steps"][-1]["losses"]


@pytest.fixture(scope="module")
def outputs(place):
    """What one process wrote, and what two did that nothing disturbed."""
    run(place, alone("one"))
    run(place, alone("two", "--processes", "2"))
    return place / "one", place / "two"


def test_two_processes_lose_what_one_does(outputs):
    one, two = outputs
    assert len(losses(one)) == 56  # seven epochs of eight batches, of which the last is filled up
    assert losses(two)[:50] == pytest.approx(losses(one)[:50], rel=1e-3)
    assert losses(one)[-1] < 0.8 * losses(one)[0]
    assert report(two)["final"]["quality"] == pytest.approx(report(one)["final"]["quality"], abs=0.07)  # 1 text of 16
    assert [report(output)["environment"]["processes_of_training"] for output in outputs] == [1, 2]
    assert report(two)["final"]["zeros"] == report(one)["final"]["zeros"] > 0


def workers(output: str) -> dict[int, int]:
    """The ids of the processes that work on an output, by their number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, settings = ((folder / name).read_text().split("\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        rank = [one.removeprefix("RANK=") for one in settings if one.startswith("RANK=")]
        if output in words and rank and "accelerate" not in words[1]:
            found[int(rank[0])] = int(folder.name)
    return found


def killed(place: Path, command: list, output: str, victims: tuple[int, ...]) -> subprocess.Popen:
    """Starts a run and kills some of its processes, or also the one that started them, after a checkpoint."""
    process = started(place, command)
    training = place / f"{output}.partial" / "training-03"
    while not list(training.glob("checkpoint-*/whole")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    found = workers(output)
    assert sorted(found) == [0, 1]
    if len(victims) == 2:
        process.kill()
    for victim in victims:
        os.kill(found[victim], signal.SIGKILL)
    return process


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("victims", [(0, 1), (0,), (1,)], ids=["all", "the first", "the second"])
def test_a_run_whose_processes_are_killed_goes_on_to_the_same_bytes(place, outputs, victims):
    output = f"killed-{len(victims)}{victims[-1]}"
    command = alone(output, "--processes", "2")
    process = killed(place, command, output, victims)
    _, told = process.communicate(timeout=60)
    assert process.returncode == (1 if len(victims) == 1 else -signal.SIGKILL)
    assert len(victims) == 2 or told.count("error: ") == 1
    assert "Traceback" not in told
    assert workers(output) == {}
    assert not (place / output).exists()
    run(place, command)
    assert losses(place / output) == losses(outputs[1])
    for name in ("model.safetensors", "config.json"):
        assert (place / output / name).read_bytes() == (outputs[1] / name).read_bytes()


def test_another_number_of_processes_is_another_run(place, outputs):
    if Path("/proc/self/environ").exists():
        command = alone("renumbered", "--processes", "2")
        killed(place, command, "renumbered", (0, 1)).communicate(timeout=60)
        assert "begun with a different number of processes; pass --restart" in run(place, alone("renumbered"), 2)


@pytest.mark.parametrize("far", [False, True], ids=["a shared folder", "no shared folder"])
def test_two_machines_write_what_two_processes_do(place, outputs, far):
    (place / "far.py").write_text(FAR)
    output = f"machines-{far}"
    port = ["--main_process_port", "29517" if far else "29518"]
    scripts = [{}, {"script": ("far.py",)} if far else {}]
    machines = [
        started(place, launched(output, *TWO, *port, "--machine_rank", str(number), **script))
        for number, script in enumerate(scripts)
    ]
    told = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert losses(place / output) == losses(outputs[1])
    assert (place / output / "model.safetensors").read_bytes() == (outputs[1] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_weights_spread_over_processes_learn_the_same_also_after_a_kill(place, outputs, kind):
    output = kind.split("_")[0].lower()
    command = launched(output, *FSDP, "--fsdp_state_dict_type", kind)
    if Path("/proc/self/environ").exists():
        killed(place, command, output, (0, 1)).communicate(timeout=60)
    run(place, command)
    assert losses(place / output) == pytest.approx(losses(outputs[0]), rel=1e-3)
    ours, alone = (load_file(folder / "model.safetensors") for folder in (place / output, outputs[0]))
    assert ours.keys() == alone.keys()
    assert all((ours[name] == 0).equal(alone[name] == 0) for name in alone)


MISTAKES = {
    "a batch that cannot be shared": (["--set", "steps.2.batch_size=9"], "2 processes cannot share 9 equally; give a"),
    "a key that is not there": (["--set", "steps.2.batch_sise=9"], "did you mean 'batch_size'?"),
    "texts that are not there": (["--data", "./nowhere"], "./nowhere is no folder or file here"),
    "an output that exists": (["-o", "model"], "would replace model"),
}


@pytest.mark.parametrize(("arguments", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(place, arguments, told):
    message = run(place, alone("mistaken", "--processes", "2", *arguments), 2)
    assert message.startswith("error: ")
    assert message.count("error: ") == 1
    assert told in message
    assert "Traceback" not in message
    assert not (place / "mistaken").exists()
    assert not (place / "mistaken.partial").exists()


def test_zeros_that_change_are_refused_where_weights_are_spread(place):
    steps = "steps=[train: {labels: 1, with: [sparsify.gradual: {}]}]"
    message = run(place, [*launched("spread", *FSDP), "--set", steps], 1)
    assert "sparsify.gradual works on whole weights, which FSDP spreads over processes" in message


def test_an_older_fsdp_is_refused(place):
    message = run(place, launched("older", *FSDP[:1], *FSDP[3:]), 1)
    assert "pass --fsdp_version 2" in message

"""A run works beside its output, alone, and goes on from its last finished step."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from optimum_slim.errors import OutputError
from optimum_slim.model.checkpoint import load_model
from optimum_slim.planning import planned
from optimum_slim.recipe import read_recipe
from optimum_slim.report.report import Report
from optimum_slim.workspace import Workspace
from tests.tiny import save_rows, save_tiny


@pytest.fixture
def recipe(tmp_path):
    """The content of a recipe whose model and texts are made for one test."""
    save_tiny(tmp_path / "model", "bert")
    save_rows(tmp_path / "texts", "text-classification")
    source = {"source": str(tmp_path / "texts"), "max_length": 16}
    steps = [{"prune.layers": {"ratio": 0.3}}, {"prune.layers": {"ratio": 0.5}}]
    return {"slim": 1, "model": str(tmp_path / "model"), "data": source, "steps": steps}


@pytest.fixture
def workspace(tmp_path, recipe):
    """Opens a workspace for the recipe as it stands now."""
    return lambda **options: Workspace(tmp_path / "out", planned(read_recipe(recipe)), **options)


@pytest.fixture
def checkpoint(recipe):
    """Runs a step and keeps it, as the flow does."""

    def after(work: Workspace, count: int) -> None:
        plan = planned(read_recipe(recipe))
        model = load_model(plan.folder)
        for step in plan.steps[:count]:
            step.technique.apply(model)
        work.checkpoint(model, plan.tokenizer, Report(steps=[{"technique": step.name} for step in plan.steps[:count]]))

    return after


def test_a_folder_that_no_run_wrote_is_never_replaced(workspace, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="files that no run wrote"):
        workspace(overwrite=True)


def test_an_existing_output_is_refused_unless_it_may_be_replaced(workspace, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        workspace()
    with workspace(overwrite=True):
        assert (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(workspace, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="is a file"):
        workspace(overwrite=True)


def test_an_output_below_a_file_is_refused(recipe, tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="cannot be written"),
        Workspace(tmp_path / "file" / "out", planned(read_recipe(recipe))),
    ):
        pass


@pytest.mark.parametrize("output", [".", "..", "/"])
def test_an_output_that_is_a_folder_of_the_system_is_refused(recipe, output):
    with pytest.raises(OutputError):
        Workspace(Path(output), planned(read_recipe(recipe)))


@pytest.mark.parametrize("output", ["model", "texts", ".", "model/../model"])
def test_an_output_that_would_replace_the_model_or_the_texts_is_refused(recipe, tmp_path, output):
    with pytest.raises(OutputError):
        Workspace(tmp_path / output, planned(read_recipe(recipe)), overwrite=True)


def test_a_second_run_to_the_same_output_is_refused_while_the_first_one_runs(workspace, tmp_path):
    with workspace(), pytest.raises(OutputError, match="another run is writing"), workspace():
        pass
    with workspace():
        pass


def test_a_run_in_another_process_holds_the_workspace_too(workspace, tmp_path):
    hold = "import sys, filelock as f; a = f.FileLock(sys.argv[1]); a.acquire(); print(1, flush=True); sys.stdin.read()"
    (tmp_path / "out.partial").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "out.partial" / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        other.stdout.readline()
        with pytest.raises(OutputError, match="another run is writing"), workspace():
            pass
        other.kill()
    with workspace():
        pass


def test_the_same_run_goes_on_from_its_last_finished_step(workspace, checkpoint):
    with workspace() as work:
        assert work.done() is None
        checkpoint(work, 1)
    with workspace() as work:
        count, folder = work.done()
        assert (count, load_model(folder).config.num_hidden_layers) == (1, 2)
        assert Report.read(folder).steps == [{"technique": "prune.layers"}]


def test_only_the_last_checkpoint_is_kept(workspace, checkpoint, tmp_path):
    with workspace() as work:
        checkpoint(work, 1)
        checkpoint(work, 2)
        assert work.done()[0] == 2
        assert [path.name for path in sorted((tmp_path / "out.partial").glob("step*"))] == ["step-02"]


def test_a_checkpoint_that_was_not_finished_counts_for_nothing(workspace, checkpoint, tmp_path):
    with workspace() as work:
        checkpoint(work, 1)
        (tmp_path / "out.partial" / "step-02.unfinished").mkdir()
        (tmp_path / "out.partial" / "step-02.unfinished" / "config.json").write_text("{")
    with workspace() as work:
        assert work.done()[0] == 1
        checkpoint(work, 2)
        assert work.done()[0] == 2
        assert load_model(work.done()[1]).config.num_hidden_layers == 1


DIFFERENT = {
    "recipe": lambda recipe, root: recipe.update(seed=1),
    "model": lambda recipe, root: save_tiny(root / "model", "bert", layer_norm_eps=1e-3),
    "teacher": lambda recipe, root: recipe.update(teacher=str(save_tiny(root / "teacher", "bert", hidden_size=32))),
    "data": lambda recipe, root: save_rows(root / "texts", "text-classification", train=32),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_different_run_is_refused_by_the_name_of_what_differs(workspace, checkpoint, recipe, tmp_path, what):
    with workspace() as work:
        checkpoint(work, 1)
    DIFFERENT[what](recipe, tmp_path)
    with pytest.raises(OutputError, match=f"begun with a different.* {what}.*--restart"), workspace():
        pass
    assert (tmp_path / "out.partial" / "step-01").exists()


TEXTS = {
    "data.extra": lambda root: (root / "more.txt").write_text("w20 bad\n"),
    "augment.masked_lm": lambda root: save_tiny(root / "words", "bert", "ForMaskedLM", layer_norm_eps=1e-3),
}


@pytest.fixture
def _more_texts(recipe, tmp_path):
    """The recipe also has texts without labels, and a model that proposes words."""
    (tmp_path / "more.txt").write_text("w20 good\n")
    save_tiny(tmp_path / "words", "bert", "ForMaskedLM")
    recipe["data"]["extra"] = [str(tmp_path / "more.txt")]
    augment = {"masked_lm": str(tmp_path / "words")}
    recipe["steps"].append({"train": {"augment": augment, "with": ["distill.logits"]}})


@pytest.mark.usefixtures("_more_texts")
@pytest.mark.parametrize("what", TEXTS)
def test_other_texts_without_labels_or_another_proposer_are_a_different_run(workspace, checkpoint, tmp_path, what):
    with workspace() as work:
        checkpoint(work, 1)
    with workspace():
        pass
    TEXTS[what](tmp_path)
    with pytest.raises(OutputError, match=f"begun with a different {what};"), workspace():
        pass


@pytest.mark.usefixtures("_more_texts")
@pytest.mark.parametrize("output", ["more.txt", "words"])
def test_an_output_that_would_replace_what_texts_are_made_of_is_refused(recipe, tmp_path, output):
    with pytest.raises(OutputError, match="would replace"):
        Workspace(tmp_path / output, planned(read_recipe(recipe)), overwrite=True)


def test_other_versions_make_a_different_run(workspace, checkpoint, tmp_path):
    with workspace() as work:
        checkpoint(work, 1)
    record = tmp_path / "out.partial" / "run.json"
    before = json.loads(record.read_text())
    before["versions"]["torch"] = "1.0"
    record.write_text(json.dumps(before))
    with pytest.raises(OutputError, match="begun with a different versions"), workspace():
        pass


def test_a_damaged_record_of_the_run_is_refused_with_what_to_do(workspace, checkpoint, tmp_path):
    with workspace() as work:
        checkpoint(work, 1)
    (tmp_path / "out.partial" / "run.json").write_text("{")
    with pytest.raises(OutputError, match="--restart"), workspace():
        pass


def test_a_run_that_failed_before_any_work_leaves_nothing_behind(workspace, tmp_path):
    with contextlib.suppress(InterruptedError), workspace():
        raise InterruptedError
    assert not (tmp_path / "out.partial").exists()


def test_a_full_disk_is_told_before_the_work(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    with pytest.raises(OutputError, match=r"needs about \d+ MB on the disk of .*, and only 1 MB are free"), workspace():
        pass
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_disk_that_fills_up_during_the_work_is_told_with_what_to_do(workspace, checkpoint):
    with workspace() as work:
        checkpoint(work, 1)
    with pytest.raises(OutputError, match="is full; make room, and the same command goes on"), workspace():
        Path("/dev/full").write_text("weights")
    with workspace() as work:
        assert work.done()[0] == 1


def test_restart_forgets_what_was_done(workspace, checkpoint, recipe):
    with workspace() as work:
        checkpoint(work, 1)
    recipe.update(seed=1)
    with workspace(restart=True) as work:
        assert work.done() is None
    with workspace():
        pass


def test_the_finished_folder_takes_the_outputs_place(workspace, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "slim_report.json").touch()
    with workspace(overwrite=True) as work:
        (work.scratch("final") / "new").touch()
        assert (tmp_path / "out" / "slim_report.json").exists()
        work.finish(tmp_path / "out.partial" / "final")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert not (tmp_path / "out.partial").exists()


def test_a_failing_run_leaves_the_output_as_it_was(workspace, checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "slim_report.json").touch()
    with contextlib.suppress(InterruptedError), workspace(overwrite=True) as work:
        checkpoint(work, 1)
        raise InterruptedError
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["slim_report.json"]
    with workspace(overwrite=True) as work:
        assert work.done()[0] == 1

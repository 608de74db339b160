"""Several processes: what the first tells arrives, none goes on alone, and none is left waiting."""

from __future__ import annotations

import os
import time

import pytest
import torch

from optimum_slim import processes
from optimum_slim.errors import DataError, ProcessError, SlimError
from tests.together import together


def test_alone_nothing_is_sent_and_values_stay_as_they_are(tmp_path):
    value = torch.tensor([2.0])
    assert (processes.count(), processes.index(), processes.sharded()) == (1, 0, False)
    assert processes.mean(value) is value
    assert processes.told({"step": 1}) == {"step": 1}
    assert processes.gathered("a") == ["a"]
    assert processes.agreed(lambda: 3) == 3
    processes.copied(tmp_path, tmp_path)


def say():
    index = processes.index()
    mean = processes.mean(torch.tensor([float(index), 4.0]))
    return processes.told([index, "ä", None]), processes.gathered({"index": index}), mean.tolist()


def test_all_hear_the_first_and_each_other():
    assert together(say, count=3) == [([0, "ä", None], [{"index": 0}, {"index": 1}, {"index": 2}], [1.0, 4.0])] * 3


def agree(failing):
    def make():
        if processes.index() in failing:
            raise DataError(f"there are no texts for {processes.index()}")
        return "texts"

    try:
        return processes.agreed(make)
    except SystemExit as end:
        return end.code
    except SlimError as error:
        return type(error).__name__, error.exit_code, str(error)


@pytest.mark.parametrize(("failing", "kind"), [((0, 1), "DataError"), ((0,), "DataError"), ((1,), "SlimError")])
def test_where_one_process_cannot_all_end_and_the_first_tells_why(failing, kind):
    first, second = together(agree, failing)
    assert (first[0], first[1], second) == (kind, 2, 2)
    assert f"there are no texts for {failing[0]}" in first[2]
    assert kind == "DataError" or first[2].startswith("process 1 on ")


def test_what_all_can_make_is_made():
    assert together(agree, ()) == ["texts", "texts"]


def read_what_the_first_writes(file):
    os.environ["LOCAL_RANK"] = str(processes.index())  # together() leaves it 0 for all
    with processes.first_of_machine_first():
        found = file.exists()
        time.sleep(0.5)
        file.touch()
    return found


def test_one_does_first_what_the_others_read(tmp_path):
    assert together(read_what_the_first_writes, tmp_path / "made", count=3) == [False, True, True]


def copy(folder, far):
    mine = folder / "far" if far and processes.index() else folder / "first"
    processes.copied(folder / "first", mine, ["checkpoint-*"])
    return sorted(str(path.relative_to(mine)) for path in mine.rglob("*") if path.is_file())


@pytest.mark.parametrize("far", [True, False])
def test_a_folder_is_copied_to_a_process_that_lacks_it(tmp_path, monkeypatch, far):
    monkeypatch.setattr(processes, "CHUNK", 1000)
    inner = tmp_path / "first" / "checkpoint-4" / "parts"
    inner.mkdir(parents=True)
    (inner / "weights").write_bytes(os.urandom(2500))
    (inner.parent / "whole").touch()
    (tmp_path / "first" / "other").write_text("stays")
    first, second = together(copy, tmp_path, far)
    assert first == [*second, "other"] if far else first == second
    assert (tmp_path / "far").exists() == far
    if far:
        copied = tmp_path / "far" / "checkpoint-4" / "parts" / "weights"
        assert copied.read_bytes() == (inner / "weights").read_bytes()


def lead(way):
    """The first calls the others to two pieces of work, and then ends well, badly, or in the middle of one."""
    if processes.index() == 0:
        try:
            with processes.leading() as lead:
                for number in (1, 2):
                    with lead.calling({"number": number}):
                        processes.mean(torch.tensor(1.0))
                if way == "fails":
                    raise DataError("no")
                if way == "loses one":
                    with lead.calling({"number": 3}):
                        processes.mean(torch.tensor(1.0))
                processes.told({"done": "well"})
                return "well"
        except (DataError, ProcessError) as error:
            return type(error).__name__
    done = []

    def work(call):
        if call["number"] == 3:
            os._exit(0)
        processes.mean(torch.tensor(1.0))
        done.append(call["number"])

    try:
        return done, processes.follow(work)
    except SystemExit as end:
        return done, end.code


@pytest.mark.parametrize(("way", "first", "second"), [("ends", "well", "well"), ("fails", "DataError", 2)])
def test_the_others_work_when_called_and_end_with_the_first(way, first, second):
    assert together(lead, way) == [first, ([1, 2], second)]


def lead_one_that_leaves(folder):
    begun = time.monotonic()
    if lead("loses one") == "ProcessError":
        (folder / "told").write_text(str(time.monotonic() - begun))
    os._exit(0)  # the results of both are not to be had


def test_the_first_ends_when_another_is_gone(tmp_path):
    with pytest.raises(FileNotFoundError):
        together(lead_one_that_leaves, tmp_path)
    assert float((tmp_path / "told").read_text()) < 30

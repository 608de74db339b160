"""A cached teacher says what a live one says, in few bytes, and is asked about each text once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from optimum_slim.errors import OutputError
from optimum_slim.techniques.distill.logits import DistillLogits
from optimum_slim.techniques.train import Train
from optimum_slim.training import cache, callbacks
from optimum_slim.training.batches import TrainingData
from optimum_slim.training.cache import Answers, TeacherAtRest, TeacherCache
from optimum_slim.training.losses import TopLogits
from tests.contracts import supplies_for
from tests.stopping import stopped_after
from tests.tiny import SPECIAL, VOCABULARY, mostly_slow, tiny
from tests.together import apart

LABELLED = ("bert", "distilbert")  # a class for a text, and for each word


def teacher_like(family, **changes):
    """Another model of the family: the pupil has something to learn."""
    model = tiny(family, **changes).requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    return model


class Teacher:
    """A teacher at rest, and how often it was loaded and ran."""

    def __init__(self, model, folder, fingerprint="a"):
        self.model, self.loads, self.runs = model, 0, 0
        self.at_rest = TeacherAtRest(model.config, fingerprint, self.load, folder)
        model.register_forward_hook(self.ran)

    def load(self):
        self.loads += 1
        return self.model

    def ran(self, *_):
        self.runs += 1


def ragged(count=20, size=VOCABULARY):
    """Texts of 3 to 12 tokens, to be padded on the left, where most tests pad on the right."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 13, (count,), generator=draw).tolist()
    ids = [torch.randint(len(SPECIAL), size, (length,), generator=draw).tolist() for length in lengths]
    return TrainingData([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids], padded_left)


def padded_left(examples):
    longest = max(len(example["input_ids"]) for example in examples)
    fill = {"input_ids": 1, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([[fill[name]] * (longest - len(one[name])) + one[name] for one in examples])
        for name in examples[0]
    }


def kept(teacher, data, top=VOCABULARY, temperatures=(2.0,), batch_size=8):
    settings = TeacherCache(top=top)
    return Answers(teacher.at_rest, data, teacher.model.config, settings, temperatures, batch_size, torch.device("cpu"))


def dense(logits: TopLogits):
    """The logits of a cache that keeps all, in the order of the classes."""
    return torch.zeros_like(logits.values).scatter(-1, logits.ids, logits.values)


@pytest.mark.parametrize("shard_bytes", [2**10, 2**26], ids=["many shards", "one shard"])
def test_what_is_read_is_what_the_teacher_says(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(cache, "SHARD_BYTES", shard_bytes)
    teacher, data = Teacher(teacher_like("llama"), tmp_path), ragged()
    answers = kept(teacher, data)
    assert (len(answers.shards) > 5) == (shard_bytes == 2**10)
    numbered = answers.numbered()
    chosen = [numbered.examples[at] for at in (7, 0, 19, 3)]
    batch = numbered.collate(chosen)
    read = answers.outputs(batch.pop("answers")).logits
    real = batch["attention_mask"].bool()
    said = teacher.model(**batch).logits[real]
    said = said - said.amax(-1, keepdim=True)
    assert "number" not in batch
    torch.testing.assert_close(dense(read)[real], said, rtol=1e-3, atol=1e-3)
    few = kept(teacher, data, top=5, temperatures=(0.5, 2.0))
    top = few.outputs(few.numbered().collate(chosen)["answers"]).logits
    assert top.values.shape[-1] == 5
    for temperature in (0.5, 2.0):
        ours = torch.cat([top.values[real] / temperature, top.rest[temperature][real][:, None]], -1).logsumexp(-1)
        torch.testing.assert_close(ours, (said / temperature).logsumexp(-1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [VOCABULARY, 70_000])
def test_a_token_takes_less_than_300_bytes(tmp_path, size):
    data = ragged(24, size)
    answers = kept(Teacher(tiny("llama", vocab_size=size, num_hidden_layers=1), tmp_path), data, TeacherCache().top)
    tokens = sum(len(example["input_ids"]) for example in data.examples)
    files = list(answers.folder.iterdir())
    assert sum(file.stat().st_size for file in files) / tokens < 300
    assert {file.suffix for file in files} == {".safetensors"}
    batch = answers.numbered().collate(answers.numbered().examples[:8])
    assert batch["answers"]["ids"].max() > size / 2


def trained(family, folder, teacher, settings, data=None, **others):
    """A student after two epochs with a teacher, live or at rest."""
    student = tiny(family)
    supplies = supplies_for(student, folder / "work") | {"teacher": teacher.model, "teacher_at_rest": teacher.at_rest}
    if data is not None:
        supplies["training_data"] = data
    train = Train(**{"epochs": 2, "batch_size": 8, "with_": (DistillLogits(),)} | settings | others)
    train.apply(student, **{name: supplies[name] for name in train.asks()})
    return student.state_dict()


def difference(some, others):
    """The root of all squared differences of weights."""
    squares = [(some[name] - others[name]).square().sum() for name in some if some[name].is_floating_point()]
    return torch.stack(squares).sum().sqrt().item()


KEEPING = {"teacher_cache": TeacherCache(top=VOCABULARY)}


@pytest.mark.parametrize("family", mostly_slow("bert", "distilbert", "roberta", "llama", families=(
    "bert", "distilbert", "roberta", "llama", "gpt2")))  # fmt: skip
def test_a_student_learns_from_the_cache_what_a_live_teacher_teaches(family, tmp_path):
    teacher = Teacher(teacher_like(family), tmp_path / "answers")
    live = trained(family, tmp_path / "live", teacher, {})
    cached = trained(family, tmp_path / "cached", teacher, KEEPING)
    learned = difference(live, tiny(family).state_dict())
    assert difference(live, cached) < 0.01 * learned


def test_the_teacher_is_asked_once_about_each_text_and_then_not_even_loaded(tmp_path):
    teacher = Teacher(teacher_like("bert"), tmp_path / "answers")
    first = trained("bert", tmp_path / "first", teacher, KEEPING)
    assert (teacher.loads, teacher.runs) == (1, 4)  # 32 texts by eights, for two epochs
    second = trained("bert", tmp_path / "second", teacher, KEEPING)
    assert (teacher.loads, teacher.runs) == (1, 4)
    assert difference(first, second) == 0


def fewer(data):
    return replace(data, examples=data.examples[:-1])


def changed(data):
    words = [*data.examples[0]["input_ids"][:-1], 9]
    return replace(data, examples=[data.examples[0] | {"input_ids": words}, *data.examples[1:]])


OTHERS = {
    "another teacher": lambda teacher, data: (partial(kept, top=8), replace(teacher.at_rest, fingerprint="b"), data),
    "fewer texts": lambda teacher, data: (partial(kept, top=8), teacher.at_rest, fewer(data)),
    "one other word": lambda teacher, data: (partial(kept, top=8), teacher.at_rest, changed(data)),
    "more of the logits": lambda teacher, data: (partial(kept, top=9), teacher.at_rest, data),
    "another temperature": lambda teacher, data: (partial(kept, top=8, temperatures=(3.0,)), teacher.at_rest, data),
    "batches of another size": lambda teacher, data: (partial(kept, top=8, batch_size=4), teacher.at_rest, data),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_answers_to_another_question_are_never_taken(other, tmp_path):
    teacher, data = Teacher(teacher_like("llama"), tmp_path), ragged()
    kept(teacher, data, top=8)
    kept(teacher, data, top=8)
    assert teacher.loads == 1
    ask, teacher.at_rest, data = OTHERS[other](teacher, data)
    ask(teacher, data)
    assert teacher.loads == 2


def test_labels_are_no_part_of_the_question(tmp_path):
    teacher, data = Teacher(teacher_like("llama"), tmp_path), ragged()
    kept(teacher, data)
    kept(teacher, replace(data, examples=[one | {"labels": one["input_ids"]} for one in data.examples]))
    assert teacher.loads == 1


def test_a_cache_that_was_stopped_is_filled_from_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_BYTES", 2**12)
    data = ragged()
    whole = kept(Teacher(teacher_like("llama"), tmp_path / "whole"), data, top=8)
    stopping = Teacher(teacher_like("llama"), tmp_path / "stopped")

    def stop(*_):
        if stopping.runs == 3:
            raise InterruptedError

    stopping.model.register_forward_hook(stop)
    with pytest.raises(InterruptedError):
        kept(stopping, data, top=8)
    there = list((tmp_path / "stopped").rglob("*.safetensors"))
    assert 0 < len(there) < len(whole.shards)
    before = {file: file.stat().st_mtime_ns for file in there}
    again = kept(Teacher(teacher_like("llama"), tmp_path / "stopped"), data, top=8)
    assert {file: file.stat().st_mtime_ns for file in there} == before
    files = sorted(whole.folder.iterdir())
    assert [file.name for file in files] == sorted(file.name for file in again.folder.iterdir())
    assert all(file.read_bytes() == (again.folder / file.name).read_bytes() for file in files)


def test_training_that_was_stopped_goes_on_to_the_same_weights_without_the_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "SAVED_EVERY", 0)
    teacher = Teacher(teacher_like("bert"), tmp_path / "answers")
    whole = trained("bert", tmp_path / "whole", teacher, KEEPING, dropout=True)
    with stopped_after(5, monkeypatch):
        trained("bert", tmp_path / "stopped", teacher, KEEPING, dropout=True)
    resumed = trained("bert", tmp_path / "stopped", teacher, KEEPING, dropout=True)
    assert difference(whole, resumed) == 0
    assert teacher.loads == 1


def test_a_disk_without_room_is_told_before_the_teacher_is_loaded(tmp_path, monkeypatch):
    teacher = Teacher(teacher_like("llama"), tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match=r"the teacher's answers take .* lower teacher_cache.top"):
        kept(teacher, ragged())
    assert teacher.loads == 0


def test_shards_hold_consecutive_examples_up_to_a_size():
    assert list(cache._shards([3, 3, 3, 9, 1], 6)) == [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    assert list(cache._shards([5], 1)) == [range(0, 1)]


SCRIPT = """
import os
from pathlib import Path
import torch
from optimum_slim.data.augment import Augment
from optimum_slim.techniques.distill.logits import DistillLogits
from tests.training.test_cache import Teacher, teacher_like, trained

folder = Path(__file__).parent
teacher = Teacher(teacher_like("bert"), folder / "answers")
settings = {"augment": Augment(copies=2), "teacher_cache": True, "batch_size": 4}
weights = trained("bert", folder, teacher, settings)
torch.save(weights | {"loads": torch.tensor(teacher.loads)}, folder / f"{os.environ['RANK']}.pt")
"""


@pytest.mark.slow
def test_of_two_processes_one_makes_what_both_read(tmp_path):
    first, second = apart(SCRIPT, tmp_path)
    assert (first.pop("loads"), second.pop("loads")) == (2, 0)  # for its embeddings, and for its answers
    assert difference(first, second) == 0
    assert len(list((tmp_path / "work").glob("augmented-*.jsonl"))) == 1

"""Real models keep what they can do. They are read from the folder in OPTIMUM_SLIM_ASSETS."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

import pytest
import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSequenceClassification

from optimum_slim.data.texts import Data, load_texts
from optimum_slim.deploy.export import export, export_folder
from optimum_slim.deploy.machine import session_options
from optimum_slim.deploy.precision import PRECISIONS, make_precisions, prepared
from optimum_slim.deploy.verify import difference, load_ort
from optimum_slim.kernels.library import library_path
from optimum_slim.model.checkpoint import load_model, load_tokenizer
from optimum_slim.tasks import task_named
from optimum_slim.tasks.evaluate import Evaluation
from optimum_slim.techniques.distill.logits import DistillLogits
from optimum_slim.training.batches import TrainingData
from optimum_slim.training.cache import Answers, TeacherAtRest, TeacherCache

ASSETS = Path(os.environ.get("OPTIMUM_SLIM_ASSETS", "nowhere"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ASSETS.is_dir(), reason="OPTIMUM_SLIM_ASSETS names no folder with real models and data"),
]
DATA = {
    "minilm-rt": Data(source=str(ASSETS / "data" / "rt"), limit=300),
    "tiny-llama": Data(
        source=str(ASSETS / "data" / "lm"),
        sets={"austen": "austen.*", "debian": "debian.*"},
        evaluation="validation",
        max_length=256,
        limit=20,
    ),
}


@pytest.fixture(scope="module", params=list(DATA))
def exported(request, tmp_path_factory):
    """The model, its task bound to it, and the folder of its fp32 export."""
    source, folder = ASSETS / "models" / request.param, tmp_path_factory.mktemp(request.param)
    model = load_model(source)
    model.config.save_pretrained(folder)
    kind = task_named("auto", model.config)
    export(model, kind, folder / "model.onnx")
    return model, kind(model.config, load_tokenizer(source), DATA[request.param], source), folder


def test_every_attention_with_a_cache_is_one_node(exported):
    model, _, folder = exported
    nodes = prepared(folder / "model.onnx").graph.node
    cached = model.config.num_hidden_layers if model.config.model_type == "llama" else 0
    assert sum(node.op_type == "Attention" for node in nodes) == cached


def test_the_export_computes_what_torch_computes(exported):
    model, task, folder = exported
    found = load_ort(folder, type(task))
    assert difference(model, found)["largest"] < 1e-5
    if task.name == "text-generation":
        asked = task.tokenizer("It is a truth universally acknowledged", return_tensors="pt")
        asked.pop("token_type_ids", None)
        texts = [one.generate(**asked, max_new_tokens=24, do_sample=False, pad_token_id=0) for one in (model, found)]
        assert torch.equal(*texts)


@pytest.mark.parametrize("ways", [{}, {"num_beams": 3}])
def test_a_served_decoder_generates_what_torch_does_from_texts_of_any_length(exported, ways, tmp_path):
    model, task, folder = exported
    if task.name != "text-generation":
        pytest.skip("it generates nothing")
    served = ORTModelForCausalLM.from_pretrained(make_precisions(folder, tmp_path, {"fp32": {}}, "last")["fp32"])
    task.tokenizer.padding_side = "left"
    texts = ["It is a truth universally acknowledged", "The", "In Debian, a package is"]
    asked = task.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0} | ways
    assert torch.equal(served.generate(**asked, **settings), model.generate(**asked, **settings))


@pytest.mark.parametrize(("precision", "lost"), [("fp32", 1e-4), ("int8-weights", 0.01), ("int8-dynamic", 0.02)])
def test_a_precision_keeps_the_quality(exported, precision, lost, tmp_path):
    _, task, folder = exported
    evaluation = Evaluation.of(task, load_texts(task.data, 0).evaluation(task.data.evaluation))
    before = evaluation.quality(load_ort(folder, type(task)))
    after = evaluation.quality(load_ort(make_precisions(folder, tmp_path, {precision: {}})[precision], type(task)))
    for name, value in before.items():
        assert abs(after[name] - value) <= lost * (value if task.relative else 1), name


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_calibrated_int8_keeps_the_quality_of_an_encoder(exported, method, tmp_path):
    _, task, folder = exported
    if task.name == "text-generation":
        pytest.skip("one activation scale for a tensor ruins decoders")
    texts = load_texts(task.data, 0)
    drawn = task.examples(texts.train.shuffle(seed=0), 64, labelled=False)
    options = {"texts": [task.collate([one]) for one in drawn], "method": method}
    served = load_ort(make_precisions(folder, tmp_path, {"int8-static": options})["int8-static"], type(task))
    evaluation = Evaluation.of(task, texts.evaluation(task.data.evaluation))
    before, after = evaluation.quality(load_ort(folder, type(task))), evaluation.quality(served)
    assert all(abs(after[name] - value) <= 0.03 for name, value in before.items())


@pytest.mark.skipif(library_path() is None, reason="the kernels are not built here")
def test_a_whole_model_answers_alike_with_our_kernels_and_without(tmp_path):
    """Nearly: attention, norms and activations are other float operations, and rounding turns their last bits into
    steps of int8. What differs is small against what int8 itself changes."""
    source = ASSETS / "models" / "minilm-rt"
    model = load_model(source)
    kind = task_named("auto", model.config)
    data = Data(source=str(ASSETS / "data" / "rt"))
    task, texts = kind(model.config, load_tokenizer(source), data, source), load_texts(data, seed=0)
    evaluation = Evaluation.of(task, {"validation": texts.validation[""], "test": texts.test[""]})
    fp32 = export_folder(model, kind, tmp_path / "fp32")
    (tmp_path / "rows").mkdir()
    model.config.save_pretrained(tmp_path / "rows")
    PRECISIONS["int8-rows"](prepared(fp32 / "model.onnx"), tmp_path / "rows" / "model.onnx")

    def answered(folder: Path, kernels: bool) -> tuple[torch.Tensor, float]:
        served = ORTModelForSequenceClassification.from_pretrained(folder, session_options=session_options(1, kernels))
        examples = [task.collate([one]) for one in chain(*evaluation.sets.values())]
        labels = torch.cat([one.pop("labels") for one in examples])
        logits = torch.cat([served(**one).logits for one in examples])
        return logits, float((logits.argmax(-1) == labels).float().mean())

    (exact, _), (ours, accuracy), (stock, accuracy_of_stock) = (
        answered(*one) for one in ((fp32, False), (tmp_path / "rows", True), (tmp_path / "rows", False))
    )
    assert (ours - stock).abs().mean() <= (ours - exact).abs().mean() / 5
    assert abs(accuracy - accuracy_of_stock) <= 0.002


def test_a_cached_decoder_teaches_in_few_bytes_nearly_what_a_live_one_does(tmp_path):
    source = ASSETS / "models" / "tiny-llama"
    teacher, student = load_model(source), load_model(source)
    torch.manual_seed(0)
    for parameter in student.parameters():
        parameter.data += 0.15 * parameter.data.std() * torch.randn_like(parameter)
    task = task_named("auto", teacher.config)(teacher.config, load_tokenizer(source), DATA["tiny-llama"], source)
    data = TrainingData(
        task.examples(load_texts(task.data, 0).train.select(range(20)), 8, labelled=False), task.collate
    )
    at_rest = TeacherAtRest(teacher.config, "tiny-llama", lambda: teacher, tmp_path)
    answers = Answers(at_rest, data, student.config, TeacherCache(), [1.0], 8, torch.device("cpu"))
    assert sum(file.stat().st_size for file in answers.folder.iterdir()) < 300 * 8 * 256
    numbered = answers.numbered()
    batch = numbered.collate(numbered.examples)
    cached = answers.outputs(batch.pop("answers"))
    with torch.no_grad():
        live = teacher(**batch)
    technique, gradients = DistillLogits(temperature=1.0), []
    technique.begin(student, None)
    for taught in (live, cached):
        student.zero_grad()
        technique.loss(student(**batch), taught, batch).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in student.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98

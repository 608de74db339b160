"""Train: one pass in which the task's labels, distillation and schedules of zeros meet."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from datasets import Dataset
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from optimum_slim import processes
from optimum_slim.data.augment import Augment, augmented, proposals
from optimum_slim.data.texts import text_columns
from optimum_slim.model.checkpoint import empty_model
from optimum_slim.model.shape import Shape
from optimum_slim.tasks import FeatureExtraction, task_named
from optimum_slim.tasks.task import Task
from optimum_slim.techniques.technique import Technique
from optimum_slim.training.batches import TrainingData
from optimum_slim.training.cache import Answers, TeacherAtRest, TeacherCache
from optimum_slim.training.sharding import gather
from optimum_slim.training.teacher import word_embeddings
from optimum_slim.training.trained import Trained
from optimum_slim.training.trainer import SlimTrainer, train_pass


@dataclass(frozen=True)
class Train(Technique):
    """Recover quality after something was removed: the slim model learns from the original, from labels, or both
    (transformers.Trainer). Several processes share each batch, and the losses are those of one.

    - train: {epochs: 4, learning_rate: 2e-4, with: [distill.logits: {temperature: 2, weight: 4}]}
    - train: {augment: {copies: 4}, teacher_cache: true, with: [distill.logits]}
    """

    helps: ClassVar[tuple[str, ...]] = ("quality",)

    epochs: float = 3.0  # passes over the training texts
    max_steps: int | None = None  # or so many optimizer steps
    learning_rate: float = 2e-4  # at its peak; falls linearly to 0
    warmup: float = 0.06  # share of the steps in which it rises
    batch_size: int = 32  # texts or blocks in a step, of all processes together
    weight_decay: float = 0.01  # AdamW's
    labels: float = 0.0  # weight of the task's own loss
    noise: float = 0.0  # share of words swapped at random, for the teacher to answer anew; helps small data sets
    augment: Augment | None = None  # changed copies of the texts, made once, for the teacher to answer
    teacher_cache: bool | TeacherCache = False  # the teacher's logits are kept on disk: pays from the second epoch on
    freeze: tuple[str, ...] = ()  # parts that stay: embeddings, head
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 trains up to twice as fast on CPUs that have it
    dropout: bool = False  # a teacher's smooth answers need none
    with_: tuple[Trained, ...] = ()  # trained techniques, e.g. distill.logits

    def mistakes(self) -> Iterator[str]:
        for name in ("epochs", "max_steps", "learning_rate", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                yield f"{name} must be above 0, not {getattr(self, name)}"
        for name in ("labels", "weight_decay"):
            if getattr(self, name) < 0:
                yield f"{name} must be at least 0, not {getattr(self, name)}"
        for name in ("warmup", "noise"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} must be at least 0 and below 1, not {getattr(self, name)}"
        if self.noise and self.labels:
            yield "noise changes texts, so labels no longer fit them; leave labels at 0 and let a teacher answer"
        yield from self._mistakes_about_teachers()
        for part in self.freeze:
            if part not in ("embeddings", "head"):
                yield f"freeze: {part!r} is not a part; parts are embeddings and head"
        if not self.labels and not any(type(one).loss is not Trained.loss for one in self.with_):
            yield "there is nothing to learn from: give labels a weight, or list distill.logits or another under with"

    def _mistakes_about_teachers(self) -> Iterator[str]:
        if self.augment is not None and not self.taught:
            yield "augment changes texts, so labels no longer fit them; list distill.logits or another under with"
        if self.cache is None:
            return
        if not self.taught:
            yield "teacher_cache: nothing under with asks a teacher; leave it out"
        if self.noise:
            yield "teacher_cache: noise makes new texts in each epoch, which only a live teacher answers; use augment"
        for index, one in enumerate(self.with_):
            if one.needs_teacher and not one.logits_suffice:
                yield f"teacher_cache: with.{index} needs more of the teacher than its logits; leave one of the two out"

    @property
    def taught(self) -> bool:
        return any(one.needs_teacher for one in self.with_)

    @property
    def cache(self) -> TeacherCache | None:
        """How the teacher's answers are kept, if they are."""
        return TeacherCache() if self.teacher_cache is True else self.teacher_cache or None

    def models(self) -> tuple[str, ...]:
        return (self.augment.masked_lm,) if self.augment is not None and self.augment.masked_lm else ()

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        task = task_named("auto", config)
        if self.labels and task is FeatureExtraction:
            yield "labels: an embedder has no loss of its own; use distill.hidden_states"
        if self.augment is not None:
            yield from (f"augment: {refusal}" for refusal in self.augment.refusals())
            if task.answers_tokens:
                yield f"augment: {task.name} learns the very words that would change; give more texts under data.extra"
        if self.batch_size % (count := processes.count()):
            right = -(-self.batch_size // count) * count
            yield f"batch_size: {count} processes cannot share {self.batch_size} equally; give a multiple, e.g. {right}"
        for role, does in (("sparsified", "place the zeros of"), ("quantized", "quantize")):
            able = [one for one in self.with_ if getattr(type(one), role) is not getattr(Trained, role)]
            if len(able) > 1:
                model = empty_model(copy.deepcopy(config))
                owned = Counter(name for one in able for name in getattr(one, role)(model))
                twice = [name for name, times in owned.items() if times > 1]
                if twice:
                    yield f"with: two techniques {does} {twice[0]}; give each targets of its own"

    def note(self, model: PreTrainedModel) -> None:
        for one in self.with_:
            one.note(model)

    def asks(self) -> tuple[str, ...]:
        wanted = {
            "teacher": self.taught and self.cache is None,
            "teacher_at_rest": self.taught and self.cache is not None,
            "train_rows": self.augment is not None,
            "task": self.augment is not None,
        }
        return tuple(name for name in super().asks() if wanted.get(name, True))

    def apply(
        self,
        model: PreTrainedModel,
        training_data: TrainingData,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        workdir: Path,
        teacher: PreTrainedModel | None = None,
        teacher_at_rest: TeacherAtRest | None = None,
        train_rows: Dataset | None = None,
        task: Task | None = None,
    ) -> None:
        processes.join(cpu=model.device.type == "cpu")
        set_seed(seed)
        parts = [parameter for part in self.freeze for parameter in _part(model, part).parameters()]
        frozen = [parameter for parameter in parts if parameter.requires_grad]
        arguments = self._arguments(model, seed, workdir)
        data, answers = training_data, None
        if self.taught:
            data = replace(data, examples=[*data.examples, *data.extra], extra=())
        with processes.first_of_machine_first():
            if self.augment is not None and train_rows is not None and task is not None:

                def vectors() -> Tensor:
                    asked = teacher if teacher_at_rest is None else teacher_at_rest.load()
                    return word_embeddings(asked or model, model.config)

                propose = proposals(self.augment, tokenizer, vectors, task.data.max_length, arguments.device)
                columns = text_columns(train_rows, task.data.text)
                copies = augmented(train_rows, columns, self.augment, seed, propose, workdir)
                data = replace(data, examples=[*data.examples, *task.examples_of_texts(copies)])
            if self.cache is not None and teacher_at_rest is not None:
                temperatures = [getattr(one, "temperature", 1.0) for one in self.with_ if one.needs_teacher]
                answers = Answers(
                    teacher_at_rest, data, model.config, self.cache, temperatures, self.batch_size, arguments.device
                )
                data = answers.numbered()
        for parameter in frozen:
            parameter.requires_grad_(False)
        # FSDP takes a model apart for good, so it is given a copy; neither stands whole on a GPU meanwhile.
        student, device = model, model.device
        if processes.sharded():
            student = copy.deepcopy(nn.Module.to(model, "cpu"))
        try:
            trainer = SlimTrainer(
                student,
                arguments,
                data,
                self.with_,
                teacher,
                self.labels,
                self.dropout,
                self.noise,
                tokenizer.all_special_ids,
                answers,
            )
            train_pass(trainer, student, workdir)
            if student is not model:
                gather(student, model)
                nn.Module.to(model, device)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        self.note(model)

    def _arguments(self, model: PreTrainedModel, seed: int, workdir: Path) -> TrainingArguments:
        # TrainingArguments read it, and leave it as it was for an earlier pass.
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if self.precision == "fp32" else self.precision
        arguments = TrainingArguments(
            output_dir=str(workdir),
            num_train_epochs=self.epochs,
            max_steps=self.max_steps or -1,
            learning_rate=self.learning_rate,
            warmup_ratio=self.warmup,
            lr_scheduler_type="linear",
            weight_decay=self.weight_decay,
            per_device_train_batch_size=self.batch_size // processes.count(),
            bf16=self.precision == "bf16",
            use_cpu=model.device.type == "cpu",
            seed=seed,
            save_strategy="epoch",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs take as many processes: not torch's DataParallel
        return arguments


def _part(model: PreTrainedModel, name: str) -> nn.Module:
    if name == "embeddings":
        return model.get_input_embeddings()
    own = [module for child, module in model.named_children() if child != model.base_model_prefix]
    return nn.ModuleList(own)

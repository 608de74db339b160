"""One training pass: transformers.Trainer with a frozen teacher beside the student, and the losses of all trained
techniques added up."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from optimum_slim import processes
from optimum_slim.model.anatomy import anatomy_of
from optimum_slim.tasks.task import IGNORED, without_labels
from optimum_slim.training.batches import LikeLengths, TrainingData
from optimum_slim.training.cache import Answers
from optimum_slim.training.callbacks import LOSSES_FILE, STATE_FILE, WHOLE, Beside, Progress, Saving, Schedule, Zeros
from optimum_slim.training.noise import swapped
from optimum_slim.training.sharding import shard_on_cpus, spread
from optimum_slim.training.teacher import Teacher
from optimum_slim.training.trained import Trained


class SlimTrainer(Trainer):
    """`loss = labels * task loss + the sum of the trained techniques' losses`.

    Several processes each take their rows of one batch, which all of them put together; so a batch, its padding and its
    noise are the same for any number of processes. What is drawn depends on seed and step alone: training that goes on
    needs no state of a generator.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        data: TrainingData,
        trained: Sequence[Trained],
        teacher: PreTrainedModel | None,
        labels: float,
        dropout: bool,
        noise: float,
        special: Collection[int],
        answers: Answers | None = None,
    ):
        self.losses: list[float] = []  # of each step so far
        super().__init__(
            model,
            args,
            data_collator=data.collate,
            train_dataset=data.examples,
            callbacks=[Schedule(trained, self.losses), Saving(), Progress()],
        )
        self.add_callback(Zeros(model, trained))  # after the schedule, and after the model has moved to its device
        self.add_callback(Beside(lambda: self.beside, self.accelerator))
        self.remove_callback(PrinterCallback)  # it would print dicts among our lines
        self.trained, self.labels, self.dropout = trained, labels, dropout
        self.noise, self.special = noise, special
        self.examples: Any = list(data.examples)
        self.lengths = [len(example["input_ids"]) for example in data.examples]
        self.causal = anatomy_of(model).causal
        self.teacher = None
        if teacher is not None:
            teacher = spread(teacher, self.accelerator) if processes.sharded() else nn.Module.to(teacher, args.device)
            self.teacher = Teacher(teacher, model.config, args.device)
        self.answers = answers
        self.wanted = {f"output_{name}": True for one in trained for name in one.needs}
        self.model_accepts_loss_kwargs = False  # our losses are means over a batch, also under accumulation

    @property
    def beside(self) -> list[nn.Parameter]:
        """What learns beside the model."""
        return [parameter for one in self.trained for parameter in one.parameters()]

    def create_optimizer(self) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer()
        if self.beside:
            optimizer.add_param_group({"params": self.beside, "weight_decay": self.args.weight_decay})
        return optimizer

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if processes.sharded() and not self.is_fsdp_enabled:
            shard_on_cpus(self.accelerator)
            self.is_fsdp_enabled = True

    def get_train_dataloader(self) -> DataLoader:
        size = self.args.train_batch_size * processes.count()
        sampler = LikeLengths(self.lengths, size, self.args.seed)
        loader: DataLoader = DataLoader(self.examples, size, sampler=sampler, collate_fn=self.data_collator)
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def training_step(self, *given: Any) -> Tensor:
        loss = super().training_step(*given)
        self.losses.append(processes.mean(loss).item())
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        model.train(self.dropout)
        inputs = self._drawn(inputs)
        answers, labelled = inputs.pop("answers", {}), inputs.pop("labelled", None)
        unlabelled = without_labels(inputs)
        student = model(**(inputs if self.labels and labelled is None else unlabelled), **self.wanted)
        taught = None
        if self.answers is not None:
            taught = self.answers.outputs(answers)
        elif self.teacher is not None:
            taught = self.teacher.answers(unlabelled, **self.wanted)
        terms = [one.loss(student, taught, inputs) for one in self.trained]
        own = self.labels * self._task_loss(student, inputs.get("labels"), labelled) if self.labels else 0.0
        loss = sum((term for term in terms if term is not None), own)
        if self.accelerator.num_processes > 1:
            # Processes wait for each other's gradients of all that the outputs stand on; a loss may read none of them.
            loss = loss + 0 * student[0 if student.get("loss") is None else 1].mean()
        return (loss, student) if return_outputs else loss

    def _drawn(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """This process's rows of the batch, after noise; dropout comes from the same seed."""
        seed = self.args.seed * 1_000_003 + self.state.global_step
        if self.noise:
            inputs = swapped(inputs, self.noise, self.special, torch.Generator().manual_seed(seed))
        torch.manual_seed(seed * processes.count() + processes.index())
        size, at = self.args.train_batch_size, processes.index()
        return _rows(inputs, at * size, (at + 1) * size)

    def _task_loss(self, student: Any, labels: Tensor | None, labelled: Tensor | None) -> Any:
        """The task's own loss, a mean over labels, weighted so that the mean over processes is that over all; 0 where
        no text of the batch has a label."""
        if labels is None:
            return 0.0
        counted = ((labels[:, 1:] if self.causal and labels.ndim == 2 else labels) != IGNORED).sum().float()
        share = counted / processes.mean(counted) if processes.count() > 1 else 1.0
        if processes.count() > 1 and not counted:
            return 0.0  # of nothing the model says nan
        if labelled is None:
            return share * student.loss
        model: Any = self.model
        return share * model.loss_function(labels, student.logits[labelled], model.config)


def _rows(batch: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Some rows of a batch, as `Task.collate` and `Answers.numbered` make it."""
    rows = {name: _rows(one, start, stop) if name == "answers" else one[start:stop] for name, one in batch.items()}
    if "labelled" in batch:
        before, here = int(batch["labelled"][:start].sum()), int(batch["labelled"][start:stop].sum())
        rows["labels"] = batch["labels"][before : before + here]
    return rows


def train_pass(trainer: SlimTrainer, model: PreTrainedModel, folder: Path) -> None:
    """Trains `model` in place, from the last checkpoint in the trainer's output `folder` if there is one."""
    found = last_checkpoint(folder)
    name = processes.told(found and found.name)
    last = str(folder / name) if name else None
    teacher = trainer.teacher.model if trainer.teacher is not None else None
    try:
        with ExitStack() as stack:
            if "output_attentions" in trainer.wanted:
                stack.enter_context(_shown_attentions(model, teacher))
            for index, one in enumerate(trainer.trained):
                one.begin(model, teacher)
                stack.callback(one.end, model)
                if last and (file := Path(last) / STATE_FILE.format(index=index)).exists():
                    one.load_state(load_file(file))
            trainer.losses += losses(folder)
            trainer.train(resume_from_checkpoint=last)
    finally:
        # Mixed precision wraps `forward`; the wrapper goes with the pass.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        model.__dict__.pop("forward", None)
    model.eval()


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint in a pass's folder that was written to its end."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def losses(folder: Path) -> list[float]:
    """The loss of each step so far, by a pass's folder."""
    last = last_checkpoint(folder)
    return load_file(last / LOSSES_FILE)["losses"].tolist() if last else []


@contextmanager
def _shown_attentions(*models: PreTrainedModel | None) -> Iterator[None]:
    """Models that tell attention probabilities: they must compute them, which torch's fused attention does not."""
    before = [(model.config, model.config._attn_implementation) for model in models if model is not None]
    for config, _ in before:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, chosen in before:
            config._attn_implementation = chosen

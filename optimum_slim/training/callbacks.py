"""What happens around the steps of a training pass: schedules, zeros, checkpoints, progress."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from optimum_slim import processes
from optimum_slim.model.sparsity import sparse_weights
from optimum_slim.progress import progress
from optimum_slim.training.sharding import put_zeros
from optimum_slim.training.trained import Step, Trained

STATE_FILE = "trained_{index}.safetensors"
LOSSES_FILE = "losses.safetensors"
WHOLE = "whole"  # an empty file in a checkpoint that lacks nothing
SAVED_EVERY = 120  # seconds: no more training than that is lost when a run is killed


class Schedule(TrainerCallback):
    """Calls the trained techniques before and after each step, and keeps their state, and the loss of each step so far,
    with the Trainer's checkpoints."""

    def __init__(self, trained: Sequence[Trained], losses: Sequence[float]):
        self.trained, self.losses = trained, losses

    def on_pre_optimizer_step(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        step = Step(state.global_step + 1, state.max_steps, len(train_dataloader), optimizer)
        for one in self.trained:
            one.before_step(model, step)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for one in self.trained:
            one.after_step(model, state.global_step / state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for index, one in enumerate(self.trained):
            tensors = {name: torch.as_tensor(value).contiguous() for name, value in one.state().items()}
            if tensors and state.is_world_process_zero:
                save_file(tensors, folder / STATE_FILE.format(index=index))
        if state.is_world_process_zero:
            save_file({"losses": torch.tensor(self.losses)}, folder / LOSSES_FILE)
            (folder / WHOLE).touch()
            for old in folder.parent.glob("checkpoint-*"):
                if old != folder:
                    shutil.rmtree(old)


class Zeros(TrainerCallback):
    """Puts the zeros of sparse weights back after each step, whatever the gradient and AdamW's moments made of them.
    They are taken from the model as it comes, not from a checkpoint, where another weight may be zero by chance; but
    where a trained technique places zeros, from that technique."""

    def __init__(self, model: PreTrainedModel, trained: Sequence[Trained]):
        self.given = {name: weight == 0 for name, weight in sparse_weights(model).items()}
        self.trained = trained

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        zeros = self.given.copy()
        for one in self.trained:
            zeros.update(one.zeros(model))
        for name, places in zeros.items():
            put_zeros(model.get_parameter(name).data, places)


class Beside(TrainerCallback):
    """Averages over processes, and clears, the gradients of what learns beside the model: the Trainer does so for the
    model alone."""

    def __init__(self, parameters: Callable[[], Sequence[nn.Parameter]], accelerator: Accelerator):
        self.parameters, self.accelerator = parameters, accelerator

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for parameter in self.parameters():
            parameter.grad = None


class Saving(TrainerCallback):
    """Keeps a checkpoint every now and then. When is left to the clock: what comes out does not depend on it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = torch.tensor(float(time.monotonic() - self.last >= SAVED_EVERY), device=args.device)
        if processes.mean(due) > 0:  # all save at once
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()


class Progress(TrainerCallback):
    """Shows how far training is; an interrupted pass that goes on counts from where it stopped."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.shown = progress(None, "training", total=state.max_steps, done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.shown.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.shown.close()

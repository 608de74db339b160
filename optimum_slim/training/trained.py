"""What a technique is that works while weights are trained: a term of the loss, a schedule, or both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PretrainedConfig, PreTrainedModel

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Step:
    """An optimizer step that is about to be taken."""

    number: int  # the first is 1
    steps: int  # of the whole pass
    epoch: int  # steps of one epoch
    optimizer: Optimizer

    @property
    def progress(self) -> float:
        """The share of the pass that is done with this step."""
        return self.number / self.steps

    def first_from(self, share: float) -> bool:
        """Whether this is the step with which this share of the pass is done."""
        return self.number - 1 < share * self.steps <= self.number

    def forget(self, parameter: nn.Parameter, places: Tensor) -> None:
        """Sets what the optimizer remembers of a parameter's gradients to 0 in `places`, bool of its shape."""
        for moment in self.optimizer.state.get(parameter, {}).values():
            if torch.is_tensor(moment) and moment.shape == parameter.shape:
                moment.masked_fill_(places, 0)


@dataclass
class Trained:
    """Legal only under `train: with:`. Its fields are settings; what it sets in `begin` is the state of one pass."""

    helps: ClassVar[tuple[str, ...]] = ("quality",)
    needs: ClassVar[tuple[str, ...]] = ()  # outputs wanted of student and teacher: "hidden_states", "attentions"
    needs_teacher: ClassVar[bool] = False
    whole_weights: ClassVar[bool] = False  # reads or changes weights, of which FSDP leaves a process a part only
    # Whether of the teacher nothing but its logits is read, so that they may come from a cache: over a vocabulary as
    # TopLogits, for the technique's own `temperature`.
    logits_suffice: ClassVar[bool] = False

    def mistakes(self) -> Iterator[str]:
        """What is wrong with the settings by themselves; each names the setting."""
        return iter(())

    def refusals(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        """Why this cannot be done to a model of this config, or with this teacher, in words for the user."""
        return iter(())

    def sparsified(self, model: PreTrainedModel) -> list[str]:
        """The parameters whose zeros this technique places; planning asks on the empty model."""
        return []

    def quantized(self, model: PreTrainedModel) -> list[str]:
        """The parameters that this technique puts on a grid; planning asks on the empty model."""
        return []

    def note(self, model: PreTrainedModel) -> None:
        """Writes into the model's config, in place, what steps after the pass must know, as `Technique.note` does."""

    def begin(self, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        """Before the first step, student and teacher standing on their device. There is a teacher where any technique
        of the pass needs one."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """What learns beside the model and stays out of it, e.g. a projection; asked for after `begin`."""
        return ()

    def loss(self, student: Any, teacher: Any, batch: Batch) -> Tensor | None:
        """This technique's term of the loss, its weight included; none where it has no say. `student` and `teacher` are
        the models' outputs on the same batch, without a teacher None."""
        return None

    def before_step(self, model: PreTrainedModel, step: Step) -> None:
        """Before each optimizer step, when gradients are there and already clipped."""

    def zeros(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """The places, by the parameter's name, that this technique holds at zero now; after each step the trainer puts
        the zeros there. Of weights that are named here the technique alone decides, whatever zeros they came with."""
        return {}

    def after_step(self, model: PreTrainedModel, progress: float) -> None:
        """After each optimizer step; `progress` runs from 0 to 1."""

    def end(self, model: PreTrainedModel) -> None:
        """After the last step, or an error: whatever was put into the models leaves them."""

    def state(self) -> dict[str, Any]:
        """Tensors and numbers that a resumed pass needs; saved with each checkpoint."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""


class Taught(Trained):
    """A term of the loss that compares the student with a teacher. Its settings have a `weight`."""

    needs_teacher = True

    weight: float  # of the term in the loss

    def mistakes(self) -> Iterator[str]:
        if self.weight <= 0:
            yield f"weight must be above 0, not {self.weight}"

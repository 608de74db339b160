"""What a technique is that works while weights are trained: a term of the loss, a schedule, or both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

Batch = Mapping[str, Tensor]


@dataclass
class Trained:
    """Legal only under `train: with:`. Its fields are settings; what it sets in `begin` is the state of one pass."""

    needs: ClassVar[tuple[str, ...]] = ()  # outputs wanted of student and teacher: "hidden_states", "attentions"
    needs_teacher: ClassVar[bool] = False

    def mistakes(self) -> Iterator[str]:
        """What is wrong with the settings by themselves; each names the setting."""
        return iter(())

    def refusals(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        """Why this cannot be done to a model of this config, or with this teacher, in words for the user."""
        return iter(())

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

    def after_step(self, model: PreTrainedModel, progress: float) -> None:
        """After each optimizer step; `progress` runs from 0 to 1."""

    def end(self, model: PreTrainedModel) -> None:
        """After the last step, or an error: whatever was put into the models leaves them."""

    def state(self) -> dict[str, Any]:
        """Tensors and numbers that a resumed pass needs; saved with each checkpoint."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""

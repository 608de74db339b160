"""What the techniques have in common whose zeros change while the model trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.model.matrices import matrix, turned
from optimum_slim.model.shape import shape_in
from optimum_slim.model.sparsity import sparsity_in
from optimum_slim.techniques.sparsify.masks import spread, whole_blocks
from optimum_slim.techniques.sparsify.settings import Blocks, Sparsify
from optimum_slim.training.trained import Step, Trained


@dataclass
class ChangingZeros(Trained):
    """Each technique adds when and which blocks leave or grow. During a pass `gone` says by linear what is zero, bool
    [outputs, inputs]; the trainer keeps it so."""

    helps: ClassVar[tuple[str, ...]] = ("speed", "size")
    whole_weights: ClassVar[bool] = True

    pattern: Blocks = "unstructured"  # blocks that leave, inputs x outputs
    targets: tuple[str, ...] = ("attention", "ffn")  # roles, or globs over the names of linears
    ignore: tuple[str, ...] = ()  # roles or globs that stay as they are

    def linears(self) -> Sparsify:
        """Which linears are meant, in the words of the techniques that zero them at once."""
        return Sparsify(pattern=self.pattern, targets=self.targets, ignore=self.ignore)

    def mistakes(self) -> Iterator[str]:
        yield from self.linears().mistakes()

    def refusals(self, config: PretrainedConfig, teacher: PretrainedConfig) -> Iterator[str]:
        yield from self.linears().refusals(config, shape_in(config))

    def sparsified(self, model: PreTrainedModel) -> list[str]:
        return [f"{name}.weight" for name in self.linears().targeted(model)]

    def note(self, model: PreTrainedModel) -> None:
        self.linears().note(model)

    def begin(self, model: PreTrainedModel, teacher: PreTrainedModel | None) -> None:
        """Starts from the zeros of weights that the config lists, as far as they fill blocks."""
        listed = sparsity_in(model.config)
        self.gone: dict[str, Tensor] = {}
        for name in self.linears().targeted(model):
            weight = matrix(model, name)
            zeros = (weight == 0) & (f"{name}.weight" in listed)
            self.gone[name] = spread(whole_blocks(zeros, self.pattern), self.pattern, *weight.shape)

    def zeros(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        return {f"{name}.weight": turned(model, name, gone) for name, gone in self.gone.items()}

    def place(self, model: PreTrainedModel, name: str, gone: Tensor, step: Step | None = None) -> None:
        """Makes zero what `gone` says, bool [outputs, inputs], and all else of the linear free to learn. With a step
        its optimizer starts anew where something changed."""
        if step is not None:
            step.forget(model.get_parameter(f"{name}.weight"), turned(model, name, gone ^ self.gone[name]))
        matrix(model, name).masked_fill_(gone, 0)
        self.gone[name] = gone

    def state(self) -> dict[str, Any]:
        return {f"{name}.gone": gone for name, gone in self.gone.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.gone = loaded("gone", self.gone, state)

    def end(self, model: PreTrainedModel) -> None:
        self.gone = {}


def gradient(model: PreTrainedModel, name: str) -> Tensor:
    """dL/dW of a linear, [outputs, inputs], also where W is held at zero; 0 where it is frozen."""
    weight = model.get_parameter(f"{name}.weight")
    return turned(model, name, torch.zeros_like(weight) if weight.grad is None else weight.grad)


def loaded(kind: str, like: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes `<linear>.<kind>` out of a saved state, for the linears and on the devices of `like`."""
    return {name: state[f"{name}.{kind}"].to(one.device) for name, one in like.items()}

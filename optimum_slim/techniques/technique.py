"""What every technique is: settings, mistakes in them, a shape it leads to, and `apply`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.model.shape import Shape


@dataclass(frozen=True)
class Technique:
    """One step of a recipe. `apply(model, ...)` changes the model in place and leaves it a plain, running model.

    It asks for what it needs by the names of its parameters, as a pytest test asks for fixtures: calibration_data,
    training_data, train_rows, teacher, teacher_at_rest, tokenizer, task, seed, threads, workdir.
    """

    helps: ClassVar[tuple[str, ...]] = ("speed", "size")
    keeps_grids: ClassVar[bool] = False  # changes no weight that stays, so it may follow a step that quantizes
    streams: ClassVar[bool] = False  # touches weights only of blocks that are given to it in turn, or of none

    def mistakes(self) -> Iterator[str]:
        """What is wrong with the settings by themselves; each names the setting."""
        return iter(())

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        """Why this step cannot be done to this model, in words for the user."""
        return iter(())

    def shape_after(self, shape: Shape) -> Shape:
        """The shape that `apply` leads to: planning builds it on the meta device, `apply` cuts to it."""
        return shape

    def note(self, model: PreTrainedModel) -> None:
        """Writes into the model's config, in place, what later steps must know and no shape tells: planning calls it on
        the empty model, `apply` on the real one."""

    def models(self) -> tuple[str, ...]:
        """Folders and Hub ids of models that it reads besides the model and its teacher."""
        return ()

    def asks(self) -> tuple[str, ...]:
        """The supplies that `apply` wants, read from its signature."""
        return tuple(name for name in inspect.signature(self.apply).parameters if name != "model")

    # Declared as a value because each technique's `apply` has parameters of its own.
    apply: ClassVar[Callable[..., None]]

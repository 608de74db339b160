"""Move what is hard to round from activations into weights, before 8 bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from optimum_slim.data.statistics import Batches
from optimum_slim.data.stream import blocks_in_turn, largest
from optimum_slim.model.channels import Link, links_of
from optimum_slim.model.checkpoint import empty_model
from optimum_slim.model.matrices import matrix
from optimum_slim.model.shape import Shape
from optimum_slim.model.targets import idle_entries, mistakes_in_targets, targeted
from optimum_slim.techniques.technique import Technique

SMALLEST = 1e-5  # of weights and scales, as in the published code


@dataclass(frozen=True)
class QuantizeSmooth(Technique):
    """Channels that are large in activations are divided by a scale where they are written, in the norm or linear
    before, and the weights that read them are multiplied by it (SmoothQuant, arXiv:2211.10438, eq. 3 and 4): the model
    computes the same, and its activations round better. A gated feed-forward takes the scale in its second linear, the
    output of attention in the values. In encoders whose residuals read the norms (BERT) only the values can take any.

    - quantize.smooth: {alpha: 0.5}
    """

    helps: ClassVar[tuple[str, ...]] = ("quality",)
    streams: ClassVar[bool] = True

    alpha: float = 0.5  # how much of the difficulty moves into the weights: 0 little, 1 all of it
    targets: tuple[str, ...] = ("attention", "ffn")  # roles, or globs over the names of linears
    ignore: tuple[str, ...] = ()  # roles or globs that stay as they are

    def mistakes(self) -> Iterator[str]:
        if not 0 <= self.alpha <= 1:
            yield f"alpha must be from 0 to 1, not {self.alpha}"
        yield from mistakes_in_targets(self.targets)

    def refusals(self, config: PretrainedConfig, shape: Shape) -> Iterator[str]:
        idle = list(idle_entries(config, self.targets, self.ignore))
        yield from idle
        if not idle and not self.links(empty_model(copy.deepcopy(config))):
            yield (
                f"before none of these linears of a {config.model_type} stands a norm or linear that could take the "
                "scale; add attention to targets, or leave the step out"
            )

    def links(self, model: PreTrainedModel) -> list[Link]:
        """Where scales move: the links all of whose readers are meant."""
        meant = set(targeted(model, self.targets, self.ignore))
        return [link for link in links_of(model) if meant.issuperset(link.readers)]

    def apply(self, model: PreTrainedModel, calibration_data: Batches) -> None:
        links = {link.readers[0]: link for link in self.links(model)}
        for _, inputs in blocks_in_turn(model, list(links), calibration_data, largest):
            for name, size in inputs.items():
                self._smooth(model, links[name], links[name].shared(size))

    def _smooth(self, model: PreTrainedModel, link: Link, inputs: Tensor) -> None:
        weights = torch.stack([matrix(model, name).abs().amax(0) for name in link.readers]).amax(0)
        scale = smooth_scales(inputs, link.shared(weights), self.alpha)
        link.move(model, scale.where(inputs > 0, 1.0))  # nothing is known of a channel that no text has used


def smooth_scales(input_absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    """By what each input of a linear is divided, and its weights multiplied (SmoothQuant, arXiv:2211.10438, eq. 4;
    numbers as in its published code).

    Args:
        input_absmax: max |X| of each input on calibration texts, [K]. weight_absmax: max |W| of the weights that read
        it, [K]. alpha: migration strength, 0 to 1.

    Returns:
        max |X|^alpha / max |W|^(1 - alpha), float32 [K], at least 1e-5.
    """
    weights = weight_absmax.float().clamp(min=SMALLEST)
    return (input_absmax.float().pow(alpha) / weights.pow(1 - alpha)).clamp(min=SMALLEST)

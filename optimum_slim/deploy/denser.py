"""Where zeros alone cost more than a budget allows: the layers that lost most get their weights back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from optimum_slim.deploy.sensitivity import Probe, fewest, in_order, units_of
from optimum_slim.files import wholly
from optimum_slim.model.sparsity import forget_sparsity, sparsity_in
from optimum_slim.progress import progress
from optimum_slim.tasks.evaluate import Evaluation


def choose_denser(
    model: PreTrainedModel, dense: Mapping[str, Tensor], validation: Evaluation, limit: float, batch_size: int
) -> dict[str, float]:
    """Which weights must be as before their zeros, the fewest of those that lost most, for the model to lose at most
    `limit` in fp32.

    Args:
        model: the slim model, as it is again afterwards.
        dense: the weights before their zeros, by the names of sparse parameters.
        validation: texts to judge on, with the original's answers.
        batch_size: texts at a time.

    Returns:
        Each with its share of what all zeros change, each layer's alone; none where the zeros cost little enough, or
        where not even all of them suffice.
    """
    names = [name for name in sparsity_in(model.config) if name in dense]
    sparse, dense = {name: model.get_parameter(name).data for name in names}, {name: dense[name] for name in names}

    def holds_with(chosen: Iterable[str]) -> bool:
        _put(model, {**sparse, **{name: dense[name] for name in chosen}})
        return validation.loss(validation.outcomes(model, batch_size)) <= limit

    try:
        if not names or holds_with(()) or not holds_with(names):
            return {}
        _put(model, dense)
        probe, alone = Probe.of(validation, model), {}
        units = units_of(model, names)
        for unit in progress(list(units), "making single layers sparse"):
            _put(model, {**dense, **{name: sparse[name] for name in units[unit].weights}})
            alone[unit] = probe.divergence(model)
        order, shares = in_order(units, alone)
        few = fewest(len(order), lambda count: holds_with(name for unit in order[:count] for name in unit.weights))
        return {name: shares[name] for unit in order[:few] for name in unit.weights}
    finally:
        _put(model, sparse)


def make_denser(model: PreTrainedModel, dense: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Gives these weights back what they were before their zeros, in place, and tells so in the config."""
    chosen = list(names)
    _put(model, {name: dense[name] for name in chosen})
    forget_sparsity(model.config, chosen)


def keep_dense(weights: Mapping[str, Tensor], path: Path) -> None:
    """Keeps weights from before their first zeros beside those that are kept already (safetensors), whole or not at
    all."""
    if weights:
        kept = load_file(path) if path.exists() else {}
        wholly(path, lambda to: save_file({**weights, **kept}, to))


@torch.no_grad()
def _put(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        model.get_parameter(name).data = weight.to(model.device)

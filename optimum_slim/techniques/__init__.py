"""The table of contents: every technique by its YAML name. `prune.ffn` stands in `techniques/prune/ffn.py`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

# Name: the class, in the file that the name tells. Third parties add theirs through the entry-point group below.
BUILT_IN: dict[str, str] = {
    "prune.layers": "PruneLayers",
    "prune.heads": "PruneHeads",
    "prune.ffn": "PruneFFN",
    "prune.kv_heads": "PruneKVHeads",
    "sparsify.magnitude": "SparsifyMagnitude",
    "sparsify.wanda": "SparsifyWanda",
    "sparsify.sparsegpt": "SparsifySparseGPT",
    "sparsify.gradual": "SparsifyGradual",
    "sparsify.evolve": "SparsifyEvolve",
    "train": "Train",
    "distill.logits": "DistillLogits",
    "distill.hidden_states": "DistillHiddenStates",
    "distill.relations": "DistillRelations",
    "distill.attentions": "DistillAttentions",
    "quantize.smooth": "QuantizeSmooth",
    "quantize.aware": "QuantizeAware",
    "quantize.weights": "QuantizeWeights",
}

ENTRY_POINTS = "optimum_slim.techniques"


def technique_names() -> list[str]:
    """All names that a recipe may use, ours first."""
    return [*BUILT_IN, *sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - BUILT_IN.keys())]


def technique_class(name: str) -> type:
    """The class of a technique: a `Technique`, or a `Trained` for those that are legal only under `train`.

    Raises:
        KeyError: there is none of that name.
    """
    if name in BUILT_IN:
        return getattr(import_module(f"optimum_slim.techniques.{name}"), BUILT_IN[name])
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point.load()
    raise KeyError(name)


def name_of(technique: object) -> str:
    """The YAML name of a technique object."""
    return next(name for name in technique_names() if technique_class(name) is type(technique))

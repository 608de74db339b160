"""Every technique keeps the contract of contracts.py on every family that it applies to, and says why where not."""

from __future__ import annotations

import pytest

from optimum_slim.model.shape import shape_in
from optimum_slim.techniques import name_of, technique_class
from tests.contracts import check_contract, check_idle
from tests.tiny import DECODERS, ENCODERS, FAMILIES, GROUPED, tiny, tiny_config

Layers, Heads, FFN, KVHeads, Train = map(
    technique_class, ("prune.layers", "prune.heads", "prune.ffn", "prune.kv_heads", "train")
)
Logits, HiddenStates, Relations, Attentions = map(
    technique_class, ("distill.logits", "distill.hidden_states", "distill.relations", "distill.attentions")
)
Magnitude, Wanda, SparseGPT = map(technique_class, ("sparsify.magnitude", "sparsify.wanda", "sparsify.sparsegpt"))
Gradual, Evolve = map(technique_class, ("sparsify.gradual", "sparsify.evolve"))
Aware, Weights = technique_class("quantize.aware"), technique_class("quantize.weights")


def learning(*losses, **settings):
    return Train(max_steps=2, batch_size=8, with_=losses, **settings)


SPARSE = {"slim": {"version": 1, "sparsity": {"model.layers.0.mlp.down_proj.weight": "4x1"}}}
SIX_HEADS = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}

# Name: the technique, and where it runs by default. The whole matrix is slow.
CASES = {
    "layers evenly": (Layers(ratio=0.3), ("distilbert", "gpt2")),
    "layers by influence": (Layers(keep=2, which="influence"), ("roberta", "qwen3")),
    "layers by loss": (Layers(keep=2, which="loss"), ("opt", "qwen3")),
    "layers listed": (Layers(which=[0, 2]), ("bert", "qwen2")),
    "heads": (Heads(ratio=0.5, refit=False), ("bert", "opt")),
    "heads of some layers": (Heads(ratio=0.5, ignore_layers=(0,)), ("distilbert", "llama")),
    "heads refitted": (Heads(ratio=0.5), ("xlm-roberta", "mistral")),
    "neurons": (FFN(ratio=0.5, refit=False), ("roberta", "llama")),
    "neurons refitted": (FFN(keep=48), ("distilbert", "gpt2")),
    "key/value heads dropped": (KVHeads(ratio=0.5), ("llama", "qwen3")),
    "key/value heads merged": (KVHeads(keep=1, how="merge"), ("mistral", "qwen2")),
    "smallest weights": (Magnitude(pattern="4x4"), ("xlm-roberta",)),
    "weights by Wanda": (Wanda(pattern="4x1", allocation="owl"), ("distilbert", "mistral")),
    "weights by SparseGPT": (SparseGPT(targets=("ffn",)), ("gpt2",)),
    "training": (learning(Logits(), HiddenStates(), labels=0.5), ("distilbert", "llama", "gpt2", "opt")),
    "training of attention": (learning(Relations(), Attentions(), labels=0.5), ("roberta", "qwen3")),
    "more and more zeros": (learning(Logits(), Gradual(ratio=0.5, pattern="4x2", every=1)), ("gpt2",)),
    "rounding": (learning(Logits(), Aware(delay=0)), ("distilbert", "mistral", "gpt2")),
    "rounding to nearest": (Weights(method="rtn", bits=8), ("roberta",)),
    "rounding by GPTQ": (Weights(), ("opt",)),
    "rounding by AWQ": (Weights(method="awq", symmetric=False), ("qwen3",)),
    "rounding by HQQ": (Weights(method="hqq", group_size=None), ("gpt2",)),
    "moving zeros": (learning(Logits(), Evolve(start="random", ratio=0.5, pattern="2:4", every=1)), ("roberta",)),
}
IDLE = (
    Layers(ratio=0.0),
    Layers(keep=3, which="influence"),
    Layers(keep=3, which="loss"),
    Layers(which=[0, 1, 2]),
    Heads(ratio=0.0),
    FFN(ratio=0.0, round_to=7),
    KVHeads(ratio=0.0),
    FFN(ratio=0.5, ignore_layers=(0, 1, -1)),
    KVHeads(keep=2, how="merge"),
    Magnitude(ratio=0.0),
    Wanda(ratio=0.0, pattern="4x4", allocation="global"),
    SparseGPT(ratio=0.0, pattern="4x1"),
)


def matrix():
    for name, (technique, shown) in CASES.items():
        decoders = GROUPED if isinstance(technique, KVHeads) else DECODERS if name.endswith(("AWQ", "loss")) else ()
        for family in decoders or FAMILIES:
            marks = () if family in shown else pytest.mark.slow
            yield pytest.param(technique, family, id=f"{name}-{family}", marks=marks)


@pytest.mark.parametrize(("technique", "family"), matrix())
def test_techniques_keep_the_contract(technique, family, tmp_path):
    if isinstance(technique, Train) and family == "xlm-roberta":  # an embedder: no logits, no labels
        others = [one for one in technique.with_ if isinstance(one, Gradual | Evolve | Aware)]
        technique = learning(HiddenStates(), *others)
    assert not list(technique.mistakes())
    model = tiny(family)
    assert not list(technique.refusals(model.config, shape_in(model.config)))
    check_contract(technique, model, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_that_remove_nothing_change_nothing(family, tmp_path):
    model = tiny(family)
    for technique in IDLE:
        if family in GROUPED or not isinstance(technique, KVHeads):
            check_idle(technique, model, tmp_path)


@pytest.mark.parametrize(
    "technique",
    [
        pytest.param(learning(HiddenStates(), precision="bf16"), id="bf16"),
        pytest.param(learning(HiddenStates(), freeze=("embeddings", "head")), id="frozen parts"),
    ],
)
def test_settings_of_training_leave_no_trace_in_the_model(technique, tmp_path):
    check_contract(technique, tiny("bert"), tmp_path, exported=False)


REFUSED = [
    *((KVHeads(ratio=0.5), family, {}, "use prune.heads") for family in (*ENCODERS, "gpt2", "opt")),
    (KVHeads(keep=2, how="merge"), "llama", SIX_HEADS, "layer 0: 3 key/value heads cannot merge evenly into 2"),
    (Heads(keep=3), "llama", {}, "keep must be a multiple of the 2 key/value heads, not 3"),
    (Layers(which=[0, 5]), "bert", {}, "which: there is no layer 5; the model has layers 0 to 2"),
    (Layers(keep=2, which="loss"), "bert", {}, "which: loss is that of next tokens, which this model does not tell"),
    (Layers(ratio=0.5), "gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scales attention by a layer's number"),
    (learning(labels=1.0), "xlm-roberta", {}, "an embedder has no loss of its own"),
    (Wanda(targets=("ffn", "*.down_proj")), "bert", {}, "targets: '*.down_proj' matches no linear; give attention"),
    (Magnitude(ignore=("lm_head",)), "gpt2", {}, "ignore: 'lm_head' matches no linear"),
    (SparseGPT(targets=("*.q_proj",), ignore=("attention",)), "llama", {}, "ignore leaves none of the linears"),
    *((one, "llama", SPARSE, "sparsity must come") for one in (FFN(ratio=0.5), Heads(ratio=0.5), KVHeads(keep=1))),
]


@pytest.mark.parametrize(
    ("technique", "family", "changes", "reason"),
    [pytest.param(*row, id=f"{name_of(row[0])}-{row[1]}-{row[3].split()[0]}") for row in REFUSED],
)
def test_what_cannot_be_done_to_a_model_is_refused_with_the_reason(technique, family, changes, reason):
    config = tiny_config(family, **changes)
    assert not list(technique.mistakes())
    assert reason in " ".join(technique.refusals(config, shape_in(config)))


def test_an_embedder_has_no_logits_to_learn():
    config = tiny_config("xlm-roberta")
    assert "no logits" in " ".join(Logits().refusals(config, config))


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_may_learn_from_labels(family):
    config = tiny_config(family)
    assert not list(learning(labels=1.0).refusals(config, shape_in(config)))

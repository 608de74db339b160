"""A model whose weights stay on the disk becomes what the whole model becomes, to the last bit."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from optimum_slim.errors import ModelError
from optimum_slim.model.anatomy import blocks_of
from optimum_slim.model.checkpoint import load_model, save_model
from optimum_slim.model.grids import Grid, grids_of, put_grids
from optimum_slim.model.rounding import symmetric_scale
from optimum_slim.model.shape import shape_in, shape_of
from optimum_slim.model.streamed import HEAD, OUTSIDE, held, in_parts, parts_of
from optimum_slim.model.turns import Pass, begin_step, block_rows, blocks_to_change
from optimum_slim.techniques import BUILT_IN, technique_class
from optimum_slim.techniques.prune.ffn import PruneFFN
from optimum_slim.techniques.prune.heads import PruneHeads
from optimum_slim.techniques.prune.kv_heads import PruneKVHeads
from optimum_slim.techniques.prune.layers import PruneLayers
from optimum_slim.techniques.quantize.smooth import QuantizeSmooth
from optimum_slim.techniques.quantize.weights import QuantizeWeights
from optimum_slim.techniques.sparsify.magnitude import SparsifyMagnitude
from optimum_slim.techniques.sparsify.sparsegpt import SparsifySparseGPT
from optimum_slim.techniques.sparsify.wanda import SparsifyWanda
from tests.tiny import DECODERS, mostly_slow, save_tiny, tiny, token_batches

TECHNIQUES = [
    SparsifyWanda(),
    SparsifyWanda(pattern="4x1", allocation="owl"),
    SparsifySparseGPT(),
    SparsifyMagnitude(allocation="global"),
    PruneFFN(ratio=0.5),
    PruneHeads(ratio=0.5),
    PruneLayers(ratio=0.3, which="influence"),
    PruneLayers(keep=1, refit=True),
    PruneLayers(ratio=0.3, which="loss"),
    QuantizeSmooth(),
    QuantizeWeights(method="gptq"),
    QuantizeWeights(method="rtn", bits=8, symmetric=False),
]


def run(technique, model, batches=None):
    technique.apply(model, **({"calibration_data": batches or token_batches()} if technique.asks() else {}))


def stepped(technique, folder, work):
    """The streamed model of a folder after a step."""
    model = load_model(folder, streamed=True)
    work.mkdir(exist_ok=True)
    begin_step(model, work)
    run(technique, model)
    return model


def is_empty(model):
    return all(parameter.is_meta for parameter in model.parameters())


def same_weights(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("family", mostly_slow("llama", "gpt2", "bert"))
def test_each_step_leads_to_the_same_bits(technique, family, tmp_path):
    save_tiny(tmp_path / "model", family)
    whole = load_model(tmp_path / "model")
    if getattr(technique, "which", None) == "loss" and family not in DECODERS:
        pytest.skip("an encoder tells no next tokens")
    run(technique, whole)
    save_model(whole, tmp_path / "whole")
    streamed = stepped(technique, tmp_path / "model", tmp_path / "work")
    assert is_empty(streamed)
    save_model(streamed, tmp_path / "streamed")
    for name in ("config.json", "generation_config.json", "slim_grids.safetensors"):
        if (tmp_path / "whole" / name).exists():
            assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = load_model(tmp_path / "streamed")
    assert same_weights(again, whole)
    assert shape_in(again.config) == shape_of(again) == shape_of(streamed)
    assert [r["block"] for r in block_rows(streamed)] == [r["block"] for r in block_rows(whole)]
    assert [r["error"] for r in block_rows(streamed)] == [r["error"] for r in block_rows(whole)]


def test_every_technique_that_says_so_is_among_them():
    streaming = {technique_class(name) for name in BUILT_IN if getattr(technique_class(name), "streams", False)}
    assert {type(one) for one in TECHNIQUES} | {PruneKVHeads} == streaming


def test_merged_key_value_heads_are_those_of_the_whole_model(tmp_path):
    save_tiny(tmp_path / "model", "llama")
    whole = load_model(tmp_path / "model")
    run(PruneKVHeads(keep=1, how="merge"), whole)
    streamed = stepped(PruneKVHeads(keep=1, how="merge"), tmp_path / "model", tmp_path / "work")
    save_model(streamed, tmp_path / "streamed")
    assert same_weights(load_model(tmp_path / "streamed"), whole)


@pytest.mark.parametrize("family", mostly_slow("gpt2", "xlm-roberta", "qwen2"))
def test_only_the_part_that_is_held_is_in_memory(family, tmp_path):
    save_tiny(tmp_path, family)
    model, whole = load_model(tmp_path, streamed=True), load_model(tmp_path)
    assert is_empty(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == whole.num_parameters()
    seen = set()
    for part, names in parts_of(model).items():
        with held(model, part):
            here = {name for name, parameter in model.named_parameters() if not parameter.is_meta}
            assert here == set(names)
            assert all(torch.equal(model.get_parameter(name), whole.get_parameter(name)) for name in names)
        seen |= here
        assert is_empty(model)
    assert seen == {name for name, _ in whole.named_parameters()}
    assert sum(one.numel() for part in in_parts(model) for one in part) == whole.num_parameters()


def test_a_tied_head_is_filled_with_its_embedding(tmp_path):
    save_tiny(tmp_path / "tied", "qwen2")
    model = load_model(tmp_path / "tied", streamed=True)
    assert HEAD not in parts_of(model)
    with held(model, OUTSIDE):
        assert model.lm_head.weight is model.model.embed_tokens.weight
    save_tiny(tmp_path / "untied", "llama")
    assert parts_of(load_model(tmp_path / "untied", streamed=True))[HEAD] == ["lm_head.weight"]


def test_shards_and_small_types_are_read_and_kept_where_nothing_is_lost(tmp_path):
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    whole = load_model(tmp_path / "model")
    run(SparsifySparseGPT(targets=("ffn",)), whole)
    streamed = stepped(SparsifySparseGPT(targets=("ffn",)), tmp_path / "model", tmp_path / "work")
    save_model(streamed, tmp_path / "out")
    assert same_weights(load_model(tmp_path / "out"), whole)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [path.name for path in shards] == [f"model-0000{at}-of-00005.safetensors" for at in range(1, 6)]
    block = load_file(shards[1])
    assert block["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert block["model.layers.0.mlp.down_proj.weight"].dtype == torch.float32


@pytest.mark.parametrize("technique", [SparsifySparseGPT(), PruneFFN(ratio=0.5), QuantizeWeights()],
                         ids=lambda one: type(one).__name__)  # fmt: skip
@pytest.mark.parametrize("family", mostly_slow("llama", families=DECODERS))
def test_a_step_that_is_broken_off_goes_on_at_its_block(technique, family, tmp_path, monkeypatch):
    save_tiny(tmp_path / "model", family)
    save_model(stepped(technique, tmp_path / "model", tmp_path / "undisturbed"), tmp_path / "wanted")
    blocks = list(blocks_of(tiny(family)))
    told = []

    finish = Pass.finish

    def stopping(self, block, seconds, error):
        told.append(block.index)
        if block.index == stop:
            raise InterruptedError
        finish(self, block, seconds, error)

    monkeypatch.setattr(Pass, "finish", stopping)
    for stop in (1, 2):  # noqa: B007  read by `stopping`
        with pytest.raises(InterruptedError):
            stepped(technique, tmp_path / "model", tmp_path / "work")
    stop = None
    again = stepped(technique, tmp_path / "model", tmp_path / "work")
    assert told == [0, 1, 1, 2, 2]
    assert [row["block"] for row in block_rows(again)] == list(range(len(blocks)))
    save_model(again, tmp_path / "out")
    wanted, found = ({path.name: path.read_bytes() for path in folder.iterdir()}
                     for folder in (tmp_path / "wanted", tmp_path / "out"))  # fmt: skip
    assert found == wanted


def round_blocks(model, before):
    """Puts a weight of each block on a grid; breaks off at the block numbered `before`."""
    for block in blocks_to_change(model):
        if block.index == before:
            raise InterruptedError
        name = f"{block.name}.mlp.up_proj.weight"
        weight = model.get_parameter(name)
        scale = symmetric_scale(weight.detach())
        weight.data.copy_(((weight.detach() / scale).round()) * scale)
        put_grids(model, {name: Grid(scale, torch.full_like(scale, 128, dtype=torch.uint8))})


def test_grids_of_finished_blocks_are_found_again(tmp_path):
    save_tiny(tmp_path / "model", "llama")
    (tmp_path / "work").mkdir()
    whole = load_model(tmp_path / "model")
    round_blocks(whole, None)
    for stop in (2, None):
        model = load_model(tmp_path / "model", streamed=True)
        begin_step(model, tmp_path / "work")
        with pytest.raises(InterruptedError) if stop is not None else nullcontext():
            round_blocks(model, stop)
    save_model(model, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert same_weights(again, whole)
    assert len(grids_of(again)) == 3
    for name, grid in grids_of(whole).items():
        assert torch.equal(grids_of(again)[name].scale, grid.scale)
        assert grids_of(again)[name].integers(name, again.get_parameter(name)).shape == (128, 64)


def test_files_that_do_not_fit_are_refused(tmp_path):
    save_tiny(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ModelError, match=r"do not fit its config.json \(mismatched: model.layers.0.mlp"):
        load_model(tmp_path, streamed=True)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ModelError, match=r"missing: model\.layers\.3"):
        load_model(tmp_path, streamed=True)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ModelError, match="no file of that folder"):
        load_model(tmp_path, streamed=True)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(tmp_path, streamed=True)


def test_changes_outside_a_step_are_refused(tmp_path):
    save_tiny(tmp_path, "llama")
    with pytest.raises(ModelError, match="begin_step"):
        run(SparsifyMagnitude(), load_model(tmp_path, streamed=True))

"""Tiny random models of every family, a tokenizer and texts to go with them: made on the spot, the same every time."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0 to 4, in roberta's order
WORDS = ("good", "bad", "fine", "poor")
VOCABULARY = 128

_GROUPED = {"num_key_value_heads": 2}
# Family: the class that is built unless another head is asked for, and settings of its own.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", {"max_position_embeddings": 128}),
    "distilbert": ("DistilBertForTokenClassification", {"max_position_embeddings": 128}),
    "roberta": ("RobertaForMaskedLM", {"max_position_embeddings": 130, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRobertaModel", {"max_position_embeddings": 130, "type_vocab_size": 1}),
    "llama": ("LlamaForCausalLM", _GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", _GROUPED),
    "qwen2": ("Qwen2ForCausalLM", _GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", _GROUPED | {"head_dim": 32}),
    "gpt2": ("GPT2LMHeadModel", {"n_positions": 128}),
    "opt": ("OPTForCausalLM", {"max_position_embeddings": 128, "word_embed_proj_dim": 64, "init_std": 0.2}),
}
ENCODERS = ("bert", "distilbert", "roberta", "xlm-roberta")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "opt")
GROUPED = ("llama", "mistral", "qwen2", "qwen3")  # query heads share key/value heads


def mostly_slow(*shown: str, families: Sequence[str] = tuple(FAMILIES)) -> list[Any]:
    """The families as parameters of a test: those that are not to be shown by default are slow."""
    return [pytest.param(family, marks=() if family in shown else pytest.mark.slow) for family in families]


def tiny(family: str, head: str | None = None, **changes: Any) -> PreTrainedModel:
    """A seeded random model: 3 layers, hidden 64, 4 heads, 128 neurons; logits of order 1, no bias zero, no norm idle.

    Args:
        family: as in `FAMILIES`. head: the class name's ending, e.g. "ForTokenClassification" or "Model".
        changes: config keys, under the names that all families understand.
    """
    config = tiny_config(family, head, **changes)
    torch.manual_seed(0)
    model = getattr(transformers, config.architectures[0])(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
    return model.eval()


def tiny_config(family: str, head: str | None = None, **changes: Any) -> PretrainedConfig:
    """The config of `tiny`, with the class's name under `architectures`."""
    default, own = FAMILIES[family]
    name = default if head is None else default.replace("LMHead", "").partition("For")[0].removesuffix("Model") + head
    kind = getattr(transformers, name).config_class
    ffn_key = {"distilbert": "hidden_dim", "gpt2": "n_inner", "opt": "ffn_dim"}.get(family, "intermediate_size")
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        ffn_key: 128,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    shared = kind.attribute_map
    settings = {shared.get(key, key): value for key, value in (settings | own | changes).items()}
    return kind(**settings, architectures=[name])


def cut_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """The same model with these tokens alone, in this order, as its config says."""
    tables = [table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None]
    own = {id(parameter) for table in tables for parameter in table.parameters()}
    config = copy.deepcopy(model.config)
    config.vocab_size, config.slim = len(kept), {"version": 1, "kept_tokens": list(kept)}
    named = model.named_parameters(remove_duplicate=False)
    rows = {name: parameter[list(kept)] for name, parameter in named if id(parameter) in own}
    smaller = type(model)(config)
    smaller.load_state_dict(model.state_dict() | rows)
    return smaller.eval()


def tiny_tokenizer(
    family: str, vocabulary: int = VOCABULARY, kept: Sequence[int] | None = None
) -> PreTrainedTokenizerFast:
    """One token a word: good, bad, fine, poor, w9, w10, ... Encoders get <s> and </s> around a text. Of a smaller
    vocabulary, `kept` are the ids before it was cut, the special ones first."""
    words = [*SPECIAL, *WORDS, *(f"w{i}" for i in range(len(SPECIAL) + len(WORDS), vocabulary))]
    words = words if kept is None else [words[at] for at in kept]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL[3]))
    backend.pre_tokenizer = Whitespace()
    if family in ENCODERS:
        second = "</s> $B </s>" if family != "bert" else "$B:1 </s>:1"
        backend.post_processor = TemplateProcessing("<s> $A </s>", f"<s> $A </s> {second}", [("<s>", 0), ("</s>", 2)])
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if family == "bert" else [])
    bos, pad, eos, unk, mask = SPECIAL
    tokens = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    if family in ENCODERS:
        tokens |= {"cls_token": bos, "sep_token": eos, "mask_token": mask}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **tokens)


def save_tiny(folder: Path, family: str, head: str | None = None, **changes: Any) -> Path:
    """Writes the model and its tokenizer as transformers does; returns the folder."""
    model = tiny(family, head, **changes)
    model.save_pretrained(folder)
    tiny_tokenizer(family, model.config.vocab_size).save_pretrained(folder)
    return folder


def token_batches(sizes: Sequence[tuple[int, int]] = ((3, 12), (2, 20)), padding: str = "right") -> list[dict]:
    """Random tokens of each (batch, tokens), every second text padded by a third."""
    batches = []
    for batch, tokens in sizes:
        ids = torch.randint(len(SPECIAL), VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(tokens))
        mask = torch.ones_like(ids)
        gap = tokens // 3
        mask[1::2, (slice(tokens - gap, tokens) if padding == "right" else slice(0, gap))] = 0
        batches.append({"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask})
    return batches


def options_of(precision: str) -> dict[str, Any]:
    """What a precision cannot be made without."""
    return {"texts": token_batches()} if precision == "int8-static" else {}


@torch.no_grad()
def answers(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The logits, or the last hidden states, of a torch model or an ORTModel; zeros at padding."""
    types = {"token_type_ids": torch.zeros_like(batch["input_ids"])} if model.config.model_type == "bert" else {}
    outputs = model(**batch, **types)
    found = outputs.logits if "logits" in outputs else outputs.last_hidden_state
    return found * batch["attention_mask"][..., None] if found.ndim == 3 else found


def words(draw: random.Random, count: int) -> list[str]:
    return [f"w{draw.randrange(len(SPECIAL) + len(WORDS), VOCABULARY)}" for _ in range(count)]


def classification_row(draw: random.Random) -> dict:
    """One word decides the label."""
    label = draw.randrange(2)
    text = [*words(draw, draw.randint(3, 12)), WORDS[1 - label]]
    draw.shuffle(text)
    return {"text": " ".join(text), "label": label}


def language_row(draw: random.Random) -> dict:
    """Words in counting order, so that the next one can be guessed."""
    first = draw.randrange(len(SPECIAL) + len(WORDS), VOCABULARY - 24)
    return {"text": " ".join(f"w{first + i}" for i in range(24))}


def tagged_row(draw: random.Random) -> dict:
    """good is of class 1, all other words of class 0."""
    tokens = [word if draw.random() < 0.7 else "good" for word in words(draw, draw.randint(3, 12))]
    return {"tokens": tokens, "labels": [int(word == "good") for word in tokens]}


def pair_row(draw: random.Random) -> dict:
    """The score is the share of words that both texts have."""
    first, other = words(draw, 8), words(draw, 8)
    shared = draw.randint(0, 8)
    return {"sentence1": " ".join(first), "sentence2": " ".join(first[:shared] + other[shared:]), "score": shared / 8}


ROWS = {
    "text-classification": classification_row,
    "token-classification": tagged_row,
    "fill-mask": language_row,
    "text-generation": language_row,
    "feature-extraction": pair_row,
}


def rows_for(task: str, count: int) -> list[dict]:
    draw = random.Random(0)  # noqa: S311
    return [ROWS[task](draw) for _ in range(count)]


def save_rows(folder: Path, task: str, train: int = 64, validation: int = 16, test: int = 16) -> Path:
    """Writes rows for a task to `train.jsonl`, `validation.jsonl` and `test.jsonl`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = iter(rows_for(task, train + validation + test))
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        lines = [json.dumps(next(rows)) for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder

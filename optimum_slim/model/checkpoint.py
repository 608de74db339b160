"""Load and save a model: safetensors only, strictly, with the shape that its config tells."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import transformers
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from optimum_slim.errors import ModelError
from optimum_slim.model.anatomy import anatomy_of
from optimum_slim.model.grids import load_grids, save_grids
from optimum_slim.model.shape import Shape, shape_in
from optimum_slim.model.streamed import disk_of, put_on_disk, save_parts
from optimum_slim.model.surgery import reshape
from optimum_slim.sources import local_path

# What other libraries keep beside a model and need again, unchanged, to serve it.
CARRIED = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "*_Pooling",
    "*_Normalize",
    "*_Dense",
    "generation_config.json",
    "chat_template.jinja",
)
_DOWNLOADED = (
    "*.json",
    "*.safetensors",
    "*.onnx",
    "*.onnx_data",
    "*.yaml",
    "*.txt",
    "*.model",
    "*.jinja",
    "README.md",
    "*_Pooling/*",
    "*_Normalize/*",
    "*_Dense/*",
)


def find_model(source: str) -> Path:
    """The folder of a model: the demo's, a local one as it is, or a Hub id (`org/name` or `org/name@revision`),
    downloaded.

    Raises:
        ModelError: neither a folder with a config.json nor a model that the Hub gives out.
    """
    folder = local_path(source, "model")
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise ModelError(f"model: {source} is no folder with a config.json; give the folder of a saved model")
        return folder
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise ModelError(f"model: there is no folder {source}")
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_DOWNLOADED)))
    except Exception as error:
        raise ModelError(f"model: {source} is not a folder here, and the Hub did not give it out: {error}") from error


def find_onnx(source: str) -> Path:
    """The ONNX file of a folder or Hub id, or the file itself: `model.onnx`, there or in `onnx/`.

    Raises:
        ModelError: there is none.
    """
    path = Path(source).expanduser()
    if not path.exists():
        path = find_model(source)
    places = [path] if path.is_file() else [path / "model.onnx", path / "onnx" / "model.onnx"]
    found = next((place for place in places if place.is_file() and place.suffix == ".onnx"), None)
    if found is None:
        raise ModelError(f"{source} holds no model.onnx")
    return found


def load_config(folder: Path) -> PretrainedConfig:
    """The config of a saved model.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model: {folder / 'config.json'} cannot be read: {error}") from error


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The transformers class that the config names under `architectures`.

    Raises:
        ModelError: it names none, or one that transformers lacks.
    """
    names = config.architectures or []
    found = getattr(transformers, names[0], None) if names else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ModelError(f"config.json: architectures {names} names no class of transformers, e.g. BertModel")
    return found


def load_model(folder: str | Path, streamed: bool = False) -> PreTrainedModel:
    """Loads the model of a folder, slim or not, in float32 and in eval mode.

    Args:
        streamed: leave the weights on the disk; `model.streamed.held` brings those of one part at a time to memory.

    Raises:
        ModelError: the folder, its config or its weights cannot be read, or do not fit each other.
    """
    folder = find_model(str(folder))
    config = load_config(folder)
    told_shape(config)
    if streamed:
        return _streamed_model(folder, config)
    try:
        model, report = model_class(config).from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except ModelError:
        raise
    except Exception as error:  # a damaged file surfaces as an error of safetensors, json, torch or transformers
        raise ModelError(f"model: the weights in {folder} cannot be loaded: {error}") from error
    problems = {kind: report[f"{kind}_keys"] for kind in ("missing", "mismatched") if report[f"{kind}_keys"]}
    if report["unexpected_keys"] and getattr(config, "slim", None):
        problems["unexpected"] = report["unexpected_keys"]
    if problems:
        told = "; ".join(f"{kind}: {', '.join(map(str, sorted(keys)[:3]))}" for kind, keys in problems.items())
        raise ModelError(f"model: the weights in {folder} do not fit its config.json ({told})")
    load_grids(model, folder)
    return model.eval()


def told_shape(config: PretrainedConfig) -> Shape:
    """The shape that a config tells.

    Raises:
        ModelError: the family is not supported, or its sizes make no sense.
    """
    anatomy_of(config)
    try:
        return shape_in(config)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"config.json: the sizes of the model make no sense: {error}") from error


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model that a config tells, on the meta device: sizes without memory.

    Raises:
        ModelError: its sizes make no sense.
    """
    return _empty_model(config, torch.device("meta"))


def _empty_model(config: PretrainedConfig, construction: AbstractContextManager) -> PreTrainedModel:
    shape = told_shape(config)
    try:
        with construction:
            model = model_class(config)(config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ModelError(f"config.json: no model can be built of it: {error}") from error
    reshape(model, shape)
    return model


def _streamed_model(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    config.dtype = torch.float32
    model = _empty_model(config, init_empty_weights(include_buffers=False))  # buffers are small, and no file has them
    model.tie_weights()
    put_on_disk(model, folder)
    load_grids(model, folder)
    if model.can_generate() and (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; a decoder's without a padding token pads with its end token.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise ModelError(f"model: the tokenizer in {folder} cannot be loaded: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    # Texts are tokenized once and padded in each batch, which transformers would advise against each time.
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    return tokenizer


def save_model(model: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Saves weights and their grids (safetensors), config and tokenizer into `folder`. A streamed model is written in
    shards, one for each part."""
    if disk_of(model) is None:
        model.save_pretrained(folder, safe_serialization=True)
    else:
        save_parts(model, Path(folder))
        model.config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
    save_grids(model, Path(folder))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def carry_files(source: Path, folder: Path) -> None:
    """Copies what other libraries need beside the model (`CARRIED`) from the original, where it is not there yet."""
    for pattern in CARRIED:
        for path in sorted(source.glob(pattern)):
            target = folder / path.name
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            elif not target.exists():
                shutil.copyfile(path, target)


def license_of(folder: Path) -> str | None:
    """The licence that a model's own card names; None where it names none."""
    from huggingface_hub import ModelCard

    try:
        told = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict().get("license")
    except Exception:  # no card, or one that PyYAML or huggingface_hub cannot read: the model is as good without
        return None
    return told if isinstance(told, str) else None


def read_json(path: Path) -> dict:
    """A JSON file beside a model.

    Raises:
        ModelError: it cannot be read, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object")
    return content

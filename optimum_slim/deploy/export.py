"""From the model in memory to an fp32 ONNX file that stock ORTModels load."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from optimum.exporters.onnx import onnx_export_from_model
from optimum.exporters.tasks import TasksManager
from optimum.utils.input_generators import DummyPastKeyValuesGenerator, DummyTextInputGenerator
from transformers import PreTrainedModel

from optimum_slim.deploy.from_disk import without_weights, write_weights
from optimum_slim.deploy.graph import own_weights
from optimum_slim.deploy.stored import save_onnx
from optimum_slim.errors import ModelError
from optimum_slim.model.anatomy import anatomy_of
from optimum_slim.model.shape import Shape, shape_in, shape_of
from optimum_slim.model.streamed import disk_of
from optimum_slim.tasks.task import Task


def export(model: PreTrainedModel, task: type[Task], path: Path) -> None:
    """Writes the model as ONNX, with key/value cache for text generation; weights stand in `<path>_data` over 2 GB, and
    those of a streamed model always.

    Raises:
        ModelError: Optimum cannot export it.
    """
    disk = disk_of(model)
    with contextlib.nullcontext() if disk is None else without_weights(model):
        graph = _traced(model, task, path)
    own_weights(graph)
    if task.name == "text-generation" and not stock_cache_fits(model):
        free_cache_dimensions(graph)
    if disk is None:
        save_onnx(graph, path)
    else:
        write_weights(graph, model, disk, path.with_name(f"{path.name}_data"))
        onnx.save(graph, path)


def _traced(model: PreTrainedModel, task: type[Task], path: Path) -> onnx.ModelProto:
    """What Optimum exports; it writes beside `path` meanwhile."""
    export_task = "text-generation-with-past" if task.name == "text-generation" else task.name
    custom = {"model": _cache_config(model)} if task.name == "text-generation" else None
    told = dict(model.config.__dict__)  # the exporter sets keys for itself
    model.config.__dict__.pop("quantization_config", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quietly():
        try:
            onnx_export_from_model(
                model, folder, task=export_task, custom_onnx_configs=custom, do_validation=False, no_post_process=True
            )
        except Exception as error:
            raise ModelError(f"the model cannot be exported to ONNX: {error}") from error
        finally:
            model.config.__dict__.clear()
            model.config.__dict__.update(told)
        return onnx.load(Path(folder) / "model.onnx")


def export_folder(model: PreTrainedModel, task: type[Task], folder: Path) -> Path:
    """Writes model.onnx and config.json into `folder`, which an ORTModel then loads; returns the folder.

    Raises:
        ModelError: as `export`.
    """
    model.config.save_pretrained(folder)
    export(model, task, folder / "model.onnx")
    return folder


def onnx_bytes(path: Path) -> int:
    """Size of an ONNX file with its external data."""
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}_data")) if file.exists())


def stock_cache_fits(model: PreTrainedModel) -> bool:
    """Whether ORTModelForCausalLM computes the true size of every layer's cache from the config alone."""
    shape, config = shape_of(model), model.config
    heads = getattr(config, anatomy_of(model).heads_key)
    kv_heads = getattr(config, "num_key_value_heads", heads)
    return shape.head_dim == config.hidden_size // heads and {block.kv_heads for block in shape.blocks} == {kv_heads}


def free_cache_dimensions(graph: onnx.ModelProto) -> None:
    """Makes heads and head size of the cache inputs symbolic, in place.

    ORTModelForCausalLM starts with an empty cache whose sizes it takes from the config; as no value of it is read,
    only a fixed dimension in the graph would refuse it.
    """
    for value in graph.graph.input:
        if value.name.startswith("past_key_values."):
            dims = value.type.tensor_type.shape.dim
            for axis, name in ((1, "heads"), (3, "head_dim")):
                dims[axis].dim_param = f"{value.name}.{name}"


def _cache_config(model: PreTrainedModel) -> Any:
    """Optimum's own export config of this family, but with example caches of each layer's true size."""
    shape = shape_in(model.config)
    constructor = TasksManager.get_exporter_config_constructor(
        exporter="onnx", model=model, task="text-generation", library_name="transformers"
    )
    base = constructor.func

    class LayerwisePast(DummyPastKeyValuesGenerator):
        def generate(
            self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
        ) -> list[tuple[Any, Any]]:
            return [self._pair(block.kv_heads, shape, framework, float_dtype) for block in shape.blocks]

        def _pair(self, heads: int, shape: Shape, framework: str, dtype: str) -> tuple[Any, Any]:
            size = (self.batch_size, heads, self.sequence_length, shape.head_dim)
            key, value = (self.random_float_tensor(size, framework=framework, dtype=dtype) for _ in range(2))
            return key, value

    config = type(
        base.__name__,
        (base,),
        {
            "DUMMY_INPUT_GENERATOR_CLASSES": (DummyTextInputGenerator, LayerwisePast),
            "DUMMY_PKV_GENERATOR_CLASS": LayerwisePast,
        },
    )
    return config(model.config, task="text-generation", use_past=True, use_past_in_inputs=True)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The TorchScript exporter warns of every traced branch; the check of the result is `verify`."""
    logger = logging.getLogger("optimum.exporters")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""What a user gets without us: Optimum's own dynamic int8, by its preset for this CPU, of the original model."""

from __future__ import annotations

import logging
import platform
import shutil
from pathlib import Path

from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

from optimum_slim.deploy.machine import cpu_flags


def optimum_int8(source: Path, folder: Path) -> Path:
    """Quantizes `source/model.onnx` into `folder/model.onnx` as `optimum-cli onnxruntime quantize` does."""
    flags = cpu_flags()
    if platform.machine().lower() in ("aarch64", "arm64"):
        preset = AutoQuantizationConfig.arm64
    elif "avx512_vnni" in flags:
        preset = AutoQuantizationConfig.avx512_vnni
    else:
        preset = AutoQuantizationConfig.avx512 if "avx512f" in flags else AutoQuantizationConfig.avx2
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        quantizer = ORTQuantizer.from_pretrained(source, file_name="model.onnx")
        quantizer.quantize(
            save_dir=folder,
            quantization_config=preset(is_static=False, per_channel=False),
            use_external_data_format=(source / "model.onnx_data").exists(),
            file_suffix="",
        )
    finally:
        logging.disable(previous)
    for file in source.glob("*.json"):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    return folder

"""Lets plain `AutoModel.from_pretrained` load a slim folder: a quantizer registered with transformers gives the empty
model its per-layer widths before the weights arrive. Nothing is quantized by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANT_METHOD = "optimum_slim"  # the key under which transformers finds this hook
SLIM_VERSION = 1  # of what we write into config.json


@register_quantization_config(QUANT_METHOD)
class SlimShapeConfig(QuantizationConfigMixin):
    """What stands under `quantization_config` in config.json; the sizes themselves stand in `per_layer_config`."""

    def __init__(self, version: int = SLIM_VERSION, **_: Any):
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]  # a plain name, as any registered method has
        self.version = version


@register_quantizer(QUANT_METHOD)
class SlimShapeQuantizer(HfQuantizer):
    requires_calibration = False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        # Imported here: transformers loads this file before its own model classes exist.
        from optimum_slim.model.shape import shape_in
        from optimum_slim.model.surgery import reshape

        reshape(model, shape_in(model.config))
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        # The model is plain float weights: left marked as quantized, Trainer and save_pretrained would refuse it.
        self.remove_quantization_config(model)
        model.config.quantization_config = self.quantization_config.to_dict()
        return model

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

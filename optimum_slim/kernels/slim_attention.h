// The operators SlimAttention, SlimRotaryAttention and SlimPackedAttention of FORMAT.md.
#pragma once

#include "ort_abi.h"

namespace slim {

// What ONNX Runtime is told of them; lives as long as the library.
const ort::CustomOp* attention_operator();
const ort::CustomOp* rotary_attention_operator();
const ort::CustomOp* packed_attention_operator();

}  // namespace slim

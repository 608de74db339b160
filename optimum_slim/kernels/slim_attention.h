// The operators SlimAttention and SlimCachedAttention of FORMAT.md.
#pragma once

#include "ort_abi.h"

namespace slim {

// What ONNX Runtime is told of them; lives as long as the library.
const ort::CustomOp* attention_operator();
const ort::CustomOp* cached_attention_operator();

}  // namespace slim

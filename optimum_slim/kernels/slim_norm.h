// The operators SlimResidualNorm and SlimRmsNorm of FORMAT.md.
#pragma once

#include "ort_abi.h"

namespace slim {

// What ONNX Runtime is told of them; lives as long as the library.
const ort::CustomOp* residual_norm_operator();
const ort::CustomOp* rms_norm_operator();

}  // namespace slim

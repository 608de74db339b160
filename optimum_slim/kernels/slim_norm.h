// The operator SlimResidualNorm of FORMAT.md.
#pragma once

#include "ort_abi.h"

namespace slim {

// What ONNX Runtime is told of it; lives as long as the library.
const ort::CustomOp* residual_norm_operator();

}  // namespace slim

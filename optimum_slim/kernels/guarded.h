// What all operators share: no exception crosses to ONNX Runtime, and most of what it asks has one answer.
#pragma once

#include <new>

#include "read_layer.h"

namespace slim {

// Runs body and turns what it throws into a status.
template <class Body>
ort::Status guarded(ort::Api api, const char* name, Body&& body) noexcept {
  const auto status = [&](ort::ErrorCode code, const char* text) {
    return ort::call(api, ort::kCreateStatus, static_cast<int>(code), text);
  };
  try {
    body();
    return nullptr;
  } catch (const RuntimeFailure& failed) {
    return failed.status;
  } catch (const std::bad_alloc&) {
    return status(ort::kFail, "optimum-slim's kernel: out of memory");
  } catch (const std::exception& error) {
    try {
      return status(ort::kInvalidArgument, (std::string(name) + ": " + error.what()).c_str());
    } catch (...) {
    }
  } catch (...) {
  }
  return status(ort::kFail, "optimum-slim's kernel: unknown error");
}

// An operator with required inputs and one float output, all in CPU memory; names, types and functions are still missing.
inline ort::CustomOp float_operator() {
  ort::CustomOp one{};
  one.version = ort::kApiVersion;
  one.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
  one.GetOutputTypeCount = [](const ort::CustomOp*) { return size_t{1}; };
  one.GetOutputType = [](const ort::CustomOp*, size_t) { return static_cast<int>(ort::kFloat); };
  const auto zero = [](const ort::CustomOp*, size_t) { return 0; };  // a required, single input or output in CPU memory
  one.GetInputCharacteristic = one.GetOutputCharacteristic = one.GetInputMemoryType = zero;
  const auto first = [](const ort::CustomOp*) { return 1; };
  one.GetVariadicInputMinArity = one.GetVariadicInputHomogeneity = first;
  one.GetVariadicOutputMinArity = one.GetVariadicOutputHomogeneity = first;
  one.GetStartVersion = one.GetEndVersion = first;
  return one;
}

}  // namespace slim

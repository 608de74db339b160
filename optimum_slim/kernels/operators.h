// What all operators share: no exception crosses to ONNX Runtime, and most of what it asks has one answer.
#pragma once

#include <array>
#include <memory>
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

// A tensor of one call.
template <class T>
struct Input {
  std::vector<int64_t> shape;
  const T* data;
};
using FloatInput = Input<float>;

template <class T>
Input<T> input(ort::Api api, ort::Handle context, size_t index, const char* name) {
  ort::ConstHandle value = nullptr;
  check(api, ort::kKernelContextGetInput, static_cast<ort::ConstHandle>(context), index, &value);
  if (!value) throw ModelError(std::string("input ") + name + " is missing");
  void* data = nullptr;
  check(api, ort::kGetTensorMutableData, value, &data);
  return {shape_of(api, value), static_cast<const T*>(data)};
}

template <size_t kCount>
std::array<FloatInput, kCount> float_inputs(ort::Api api, ort::Handle context,
                                            const std::array<const char*, kCount>& names) {
  std::array<FloatInput, kCount> inputs;
  for (size_t i = 0; i < kCount; ++i) inputs[i] = input<float>(api, context, i, names[i]);
  return inputs;
}

// The memory of an output.
inline float* float_output(ort::Api api, ort::Handle context, const std::vector<int64_t>& shape, size_t index = 0) {
  ort::Handle value = nullptr;
  void* data = nullptr;
  check(api, ort::kKernelContextGetOutput, context, index, static_cast<const int64_t*>(shape.data()), shape.size(),
        &value);
  check(api, ort::kGetTensorMutableData, value, &data);
  return static_cast<float*>(data);
}

// An operator of required inputs and one output, all floats in CPU memory unless its owner says else. Its name,
// its number of inputs and its functions are still missing.
template <class Kernel>
ort::CustomOp float_operator() {
  ort::CustomOp one{};
  one.version = ort::kApiVersion;
  one.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
  one.GetInputType = [](const ort::CustomOp*, size_t) { return static_cast<int>(ort::kFloat); };
  one.GetOutputTypeCount = [](const ort::CustomOp*) { return size_t{1}; };
  one.GetOutputType = [](const ort::CustomOp*, size_t) { return static_cast<int>(ort::kFloat); };
  one.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  const auto zero = [](const ort::CustomOp*, size_t) { return 0; };  // a required input or output in CPU memory
  one.GetInputCharacteristic = one.GetOutputCharacteristic = one.GetInputMemoryType = zero;
  const auto first = [](const ort::CustomOp*) { return 1; };
  one.GetVariadicInputMinArity = one.GetVariadicInputHomogeneity = first;
  one.GetVariadicOutputMinArity = one.GetVariadicOutputHomogeneity = first;
  one.GetStartVersion = one.GetEndVersion = first;
  return one;
}

// The whole operator of a kernel. Kernel has kName, kInputs, its api, `made(api, info)`, which reads its attributes, and
// `run(context)`. Its inputs are floats, and so is its only output, unless its owner says else.
template <class Kernel>
const ort::CustomOp* operator_of() {
  static const ort::CustomOp op = [] {
    ort::CustomOp one = float_operator<Kernel>();
    one.GetName = [](const ort::CustomOp*) { return Kernel::kName; };
    one.GetInputTypeCount = [](const ort::CustomOp*) { return Kernel::kInputs.size(); };
    one.CreateKernelV2 = [](const ort::CustomOp*, ort::Api api, ort::ConstHandle info, void** kernel) {
      return guarded(api, Kernel::kName, [&] { *kernel = std::make_unique<Kernel>(Kernel::made(api, info)).release(); });
    };
    one.KernelComputeV2 = [](void* data, ort::Handle context) {
      const Kernel& kernel = *static_cast<const Kernel*>(data);
      return guarded(kernel.api, Kernel::kName, [&] { kernel.run(context); });
    };
    return one;
  }();
  return &op;
}

}  // namespace slim

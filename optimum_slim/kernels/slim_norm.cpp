// SlimResidualNorm: shapes are checked each time, as nothing of it is known before.
#include "slim_norm.h"

#include <algorithm>
#include <array>
#include <memory>

#include "dispatch.h"
#include "guarded.h"
#include "parallel.h"

namespace slim {
namespace {

constexpr const char* kName = "SlimResidualNorm";
constexpr std::array<const char*, 4> kInputs{"a", "b", "weight", "bias"};

// Fewer values than these are not worth waking a thread for.
constexpr int64_t kWorthSplitting = 400000;
constexpr int64_t kMostTasks = 16;

struct Kernel {
  ort::Api api;
  float epsilon;
  const Products* products;
};

ort::Status create(const ort::CustomOp*, ort::Api api, ort::ConstHandle info, void** kernel) {
  return guarded(api, kName, [&] {
    float epsilon = -1;
    if (ort::Status status = ort::call(api, ort::kKernelInfoGetAttributeFloat, info, "epsilon", &epsilon)) {
      ort::release(api, ort::kReleaseStatus, status);
      epsilon = -1;
    }
    if (!(epsilon >= 0)) throw ModelError("attribute epsilon is missing or negative, expected a float from 0 up");
    *kernel = std::make_unique<Kernel>(Kernel{api, epsilon, &choose_products()}).release();
  });
}

void run(const Kernel& kernel, ort::Handle context) {
  std::array<std::vector<int64_t>, 4> shapes;
  std::array<void*, 4> data{};
  for (size_t i = 0; i < kInputs.size(); ++i) {
    ort::ConstHandle input = nullptr;
    check(kernel.api, ort::kKernelContextGetInput, static_cast<ort::ConstHandle>(context), i, &input);
    if (!input) throw ModelError(std::string("input ") + kInputs[i] + " is missing");
    shapes[i] = shape_of(kernel.api, input);
    check(kernel.api, ort::kGetTensorMutableData, input, &data[i]);
  }
  const auto& [a, b, weight, bias] = shapes;
  if (a.empty() || a != b) throw ModelError("inputs a and b have no dimensions or different ones, expected equal ones");
  const std::vector<int64_t> last{a.back()};
  if (weight != last || bias != last)
    throw ModelError("inputs weight and bias do not have one dimension of " + std::to_string(a.back()));
  ort::Handle y = nullptr;
  void* output = nullptr;
  check(kernel.api, ort::kKernelContextGetOutput, context, size_t{0}, static_cast<const int64_t*>(a.data()), a.size(),
        &y);
  check(kernel.api, ort::kGetTensorMutableData, y, &output);
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < a.size(); ++i) rows *= a[i];
  if (!rows || !a.back()) return;
  const Norm norm{a.back(),
                  kernel.epsilon,
                  static_cast<const float*>(data[0]),
                  static_cast<const float*>(data[1]),
                  static_cast<const float*>(data[2]),
                  static_cast<const float*>(data[3]),
                  static_cast<float*>(output)};
  const int64_t tasks = rows * a.back() < kWorthSplitting ? 1 : std::min(rows, kMostTasks);
  Parallel(kernel.api, context)(tasks, [&](int64_t task) {
    kernel.products->residual_norm(norm, {rows * task / tasks, rows * (task + 1) / tasks});
  });
}

ort::Status compute(void* data, ort::Handle context) {
  const Kernel& kernel = *static_cast<const Kernel*>(data);
  return guarded(kernel.api, kName, [&] { run(kernel, context); });
}

}  // namespace

const ort::CustomOp* residual_norm_operator() {
  static const ort::CustomOp op = [] {
    ort::CustomOp one = float_operator();
    one.GetName = [](const ort::CustomOp*) { return kName; };
    one.GetInputTypeCount = [](const ort::CustomOp*) { return kInputs.size(); };
    one.GetInputType = [](const ort::CustomOp*, size_t) { return static_cast<int>(ort::kFloat); };
    one.CreateKernelV2 = create;
    one.KernelComputeV2 = compute;
    one.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    return one;
  }();
  return &op;
}

}  // namespace slim

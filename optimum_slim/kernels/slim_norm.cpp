// SlimResidualNorm: shapes are checked each time, as nothing of it is known before.
#include "slim_norm.h"

#include <algorithm>
#include <memory>

#include "dispatch.h"
#include "operators.h"
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
  const auto [a, b, weight, bias] = float_inputs(kernel.api, context, kInputs);
  if (a.shape.empty() || a.shape != b.shape)
    throw ModelError("inputs a and b have no dimensions or different ones, expected equal ones");
  const int64_t size = a.shape.back();
  const std::vector<int64_t> last{size};
  if (weight.shape != last || bias.shape != last)
    throw ModelError("inputs weight and bias do not have one dimension of " + std::to_string(size));
  float* const output = float_output(kernel.api, context, a.shape);
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < a.shape.size(); ++i) rows *= a.shape[i];
  if (!rows || !size) return;
  const Norm norm{size, kernel.epsilon, a.data, b.data, weight.data, bias.data, output};
  const int64_t tasks = rows * size < kWorthSplitting ? 1 : std::min(rows, kMostTasks);
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
    ort::CustomOp one = float_operator<Kernel>();
    one.GetName = [](const ort::CustomOp*) { return kName; };
    one.GetInputTypeCount = [](const ort::CustomOp*) { return kInputs.size(); };
    one.CreateKernelV2 = create;
    one.KernelComputeV2 = compute;
    return one;
  }();
  return &op;
}

}  // namespace slim

// SlimResidualNorm: shapes are checked each time, as nothing of it is known before.
#include "slim_norm.h"

#include <algorithm>

#include "dispatch.h"
#include "operators.h"
#include "parallel.h"

namespace slim {
namespace {

// Fewer values than these are not worth waking a thread for.
constexpr int64_t kWorthSplitting = 400000;
constexpr int64_t kMostTasks = 16;

struct Kernel {
  static constexpr const char* kName = "SlimResidualNorm";
  static constexpr std::array<const char*, 4> kInputs{"a", "b", "weight", "bias"};

  ort::Api api;
  float epsilon;
  const Products* products;

  static Kernel made(ort::Api api, ort::ConstHandle info);
  void run(ort::Handle context) const;
};

Kernel Kernel::made(ort::Api api, ort::ConstHandle info) {
  const float epsilon = Node(api, info).real("epsilon");
  if (!(epsilon >= 0)) fail("attribute epsilon", std::to_string(epsilon), "a float from 0 up");
  return {api, epsilon, &choose_products()};
}

void Kernel::run(ort::Handle context) const {
  const auto [a, b, weight, bias] = float_inputs(api, context, kInputs);
  if (a.shape.empty() || a.shape != b.shape)
    throw ModelError("inputs a and b have no dimensions or different ones, expected equal ones");
  const int64_t size = a.shape.back();
  const std::vector<int64_t> last{size};
  if (weight.shape != last || bias.shape != last)
    throw ModelError("inputs weight and bias do not have one dimension of " + std::to_string(size));
  float* const output = float_output(api, context, a.shape);
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < a.shape.size(); ++i) rows *= a.shape[i];
  if (!rows || !size) return;
  const Norm norm{size, epsilon, a.data, b.data, weight.data, bias.data, output};
  const int64_t tasks = rows * size < kWorthSplitting ? 1 : std::min(rows, kMostTasks);
  Parallel(api, context)(tasks, [&](int64_t task) {
    products->residual_norm(norm, {rows * task / tasks, rows * (task + 1) / tasks});
  });
}

}  // namespace

const ort::CustomOp* residual_norm_operator() { return operator_of<Kernel>(); }

}  // namespace slim

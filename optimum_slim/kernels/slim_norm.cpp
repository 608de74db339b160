// Norms: shapes are checked each time, as nothing of them is known before.
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

float epsilon_of(ort::Api api, ort::ConstHandle info) {
  const float epsilon = Node(api, info).real("epsilon");
  if (!(epsilon >= 0)) fail("attribute epsilon", std::to_string(epsilon), "a float from 0 up");
  return epsilon;
}

// Runs a norm with all but its sizes and output set.
void run_norm(ort::Api api, ort::Handle context, const std::vector<int64_t>& shape, Norm norm,
              void (*of_rows)(const Norm&, Range)) {
  norm.size = shape.back();
  norm.output = float_output(api, context, shape);
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  if (!rows || !norm.size) return;
  const int64_t tasks = rows * norm.size < kWorthSplitting ? 1 : std::min(rows, kMostTasks);
  Parallel(api, context)(tasks, [&](int64_t task) {
    of_rows(norm, {rows * task / tasks, rows * (task + 1) / tasks});
  });
}

struct ResidualNorm {
  static constexpr const char* kName = "SlimResidualNorm";
  static constexpr std::array<const char*, 4> kInputs{"a", "b", "weight", "bias"};

  ort::Api api;
  float epsilon;
  const Products* products;

  static ResidualNorm made(ort::Api api, ort::ConstHandle info) {
    return {api, epsilon_of(api, info), &choose_products()};
  }

  void run(ort::Handle context) const {
    const auto [a, b, weight, bias] = float_inputs(api, context, kInputs);
    if (a.shape.empty() || a.shape != b.shape)
      throw ModelError("inputs a and b have no dimensions or different ones, expected equal ones");
    const std::vector<int64_t> last{a.shape.back()};
    if (weight.shape != last || bias.shape != last)
      throw ModelError("inputs weight and bias do not have one dimension of " + std::to_string(last[0]));
    run_norm(api, context, a.shape, {0, epsilon, a.data, weight.data, b.data, bias.data, nullptr},
             products->residual_norm);
  }
};

struct RmsNorm {
  static constexpr const char* kName = "SlimRmsNorm";
  static constexpr std::array<const char*, 2> kInputs{"x", "weight"};

  ort::Api api;
  float epsilon;
  const Products* products;

  static RmsNorm made(ort::Api api, ort::ConstHandle info) { return {api, epsilon_of(api, info), &choose_products()}; }

  void run(ort::Handle context) const {
    const auto [x, weight] = float_inputs(api, context, kInputs);
    if (x.shape.empty()) throw ModelError("input x has no dimensions, expected at least one");
    if (weight.shape != std::vector<int64_t>{x.shape.back()})
      throw ModelError("input weight does not have one dimension of " + std::to_string(x.shape.back()));
    run_norm(api, context, x.shape, {0, epsilon, x.data, weight.data, nullptr, nullptr, nullptr}, products->rms_norm);
  }
};

}  // namespace

const ort::CustomOp* residual_norm_operator() { return operator_of<ResidualNorm>(); }
const ort::CustomOp* rms_norm_operator() { return operator_of<RmsNorm>(); }

}  // namespace slim

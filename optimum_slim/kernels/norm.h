// Norms in one pass over memory: a row stays in the first-level cache.
#pragma once

#include <cmath>

#include "activations.h"
#include "products.h"

namespace slim {
namespace {

// Adds up term(t) over a row, whole vectors first.
template <int kLanes, class Vector, class Single>
inline float total(int64_t size, const Vector& vector, const Single& single) {
  Float<kLanes> sums{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) sums += vector(i);
  float sum = 0;
  for (; i < size; ++i) sum += single(i);
  for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return sum;
}

template <int kLanes>
void residual_norm(const Norm& norm, Range rows) {
  using F = Float<kLanes>;
  const int64_t size = norm.size;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float *a = norm.a + row * size, *b = norm.b + row * size;
    float* y = norm.output + row * size;
    const float mean = total<kLanes>(
                           size,
                           [&](int64_t i) {
                             const F both = load<kLanes>(a + i) + load<kLanes>(b + i);
                             std::memcpy(y + i, &both, sizeof both);
                             return both;
                           },
                           [&](int64_t i) { return y[i] = a[i] + b[i]; }) /
                       static_cast<float>(size);
    const float variance = total<kLanes>(
                               size,
                               [&](int64_t i) {
                                 const F off = load<kLanes>(y + i) - mean;
                                 return off * off;
                               },
                               [&](int64_t i) { return (y[i] - mean) * (y[i] - mean); }) /
                           static_cast<float>(size);
    const float inverse = 1.0f / std::sqrt(variance + norm.epsilon);
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const F scaled = (load<kLanes>(y + i) - mean) * inverse;
      const F result = fused(scaled, load<kLanes>(norm.weight + i), load<kLanes>(norm.bias + i));
      std::memcpy(y + i, &result, sizeof result);
    }
    for (; i < size; ++i) y[i] = (y[i] - mean) * inverse * norm.weight[i] + norm.bias[i];
  }
}

template <int kLanes>
void rms_norm(const Norm& norm, Range rows) {
  const int64_t size = norm.size;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float* x = norm.a + row * size;
    float* y = norm.output + row * size;
    const float square = total<kLanes>(
                             size, [&](int64_t i) { return load<kLanes>(x + i) * load<kLanes>(x + i); },
                             [&](int64_t i) { return x[i] * x[i]; }) /
                         static_cast<float>(size);
    const float inverse = 1.0f / std::sqrt(square + norm.epsilon);
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const Float<kLanes> result = load<kLanes>(x + i) * inverse * load<kLanes>(norm.weight + i);
      std::memcpy(y + i, &result, sizeof result);
    }
    for (; i < size; ++i) y[i] = x[i] * inverse * norm.weight[i];
  }
}

}  // namespace
}  // namespace slim

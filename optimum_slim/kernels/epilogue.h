// From sums to outputs, the same float operations in the same order everywhere (FORMAT.md, "Numbers").
#pragma once

#include <algorithm>

#include "activations.h"
#include "layouts.h"

namespace slim {
namespace {

// The float of each of a panel's sums, times both scales.
template <int kLanes>
[[gnu::always_inline]] inline Float<kLanes> scaled(const Int<kLanes>& sums, float row_scale, const float* scale) {
  return (__builtin_convertvector(sums, Float<kLanes>) * row_scale) * load<kLanes>(scale);
}

// Adds a group's share to a row's totals.
template <int kLanes, class Sums>
[[gnu::always_inline]] inline void add_scaled(const Sums& sums, float row_scale, const float* scale,
                                              Float<kLanes> (&totals)[kPanel / kLanes]) {
  Int<kLanes> ints[kPanel / kLanes];
  static_assert(sizeof ints == sizeof sums, "the sums of a panel");
  std::memcpy(ints, &sums, sizeof ints);
#pragma GCC unroll 4
  for (int i = 0; i < kPanel / kLanes; ++i)
    totals[i] += scaled<kLanes>(ints[i], row_scale, scale + i * kLanes);
}

template <int kLanes, Activation kActivation>
inline void finish_row(const Float<kLanes> (&scaled_sums)[kPanel / kLanes], const float* bias, int64_t count,
                       float* y) {
  Float<kLanes> outputs[kPanel / kLanes];
  for (int i = 0; i < kPanel / kLanes; ++i)
    outputs[i] = activate<kLanes, kActivation>(scaled_sums[i] + load<kLanes>(bias + i * kLanes));
  std::memcpy(y, outputs, count * sizeof(float));
}

// `row_scales` is null where the sums are scaled already: then they are floats.
template <int kLanes, Activation kActivation>
inline void finish_rows(const void* sums, const float* row_scales, int64_t rows, const Epilogue& epilogue,
                        int64_t panel, float* y) {
  const float* scale = &epilogue.scale[panel * epilogue.groups * kPanel];
  const float* bias = &epilogue.bias[panel * kPanel];
  const int64_t count = std::min<int64_t>(kPanel, epilogue.outputs - panel * kPanel);
  for (int64_t row = 0; row < rows; ++row) {
    Float<kLanes> values[kPanel / kLanes];
    for (int i = 0; i < kPanel / kLanes; ++i) {
      const int64_t at = row * kPanel + i * kLanes;
      if (row_scales) {
        Int<kLanes> ints;
        std::memcpy(&ints, static_cast<const int32_t*>(sums) + at, sizeof ints);
        values[i] = scaled<kLanes>(ints, row_scales[row], scale + i * kLanes);
      } else {
        values[i] = load<kLanes>(static_cast<const float*>(sums) + at);
      }
    }
    float* to = y + row * epilogue.outputs + panel * kPanel;
    // A count that the compiler knows saves a call of memcpy.
    if (count == kPanel)
      finish_row<kLanes, kActivation>(values, bias, kPanel, to);
    else
      finish_row<kLanes, kActivation>(values, bias, count, to);
  }
}

// Writes outputs of some rows and one panel from sums [row][16]; y points at the first row's output 0. Kept out of
// line: inlined, it would take the registers from the accumulators.
template <int kLanes>
__attribute__((noinline)) void store_panel(const void* sums, const float* row_scales, int64_t rows,
                                           const Epilogue& epilogue, int64_t panel, float* y) {
  switch (epilogue.activation) {
    case Activation::kNone:
      return finish_rows<kLanes, Activation::kNone>(sums, row_scales, rows, epilogue, panel, y);
    case Activation::kRelu:
      return finish_rows<kLanes, Activation::kRelu>(sums, row_scales, rows, epilogue, panel, y);
    case Activation::kGelu:
      return finish_rows<kLanes, Activation::kGelu>(sums, row_scales, rows, epilogue, panel, y);
    case Activation::kGeluTanh:
      return finish_rows<kLanes, Activation::kGeluTanh>(sums, row_scales, rows, epilogue, panel, y);
    case Activation::kSilu:
      return finish_rows<kLanes, Activation::kSilu>(sums, row_scales, rows, epilogue, panel, y);
  }
}

}  // namespace
}  // namespace slim

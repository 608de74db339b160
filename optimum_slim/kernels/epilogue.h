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

// What becomes of outputs 0 to kLanes - 1 of `linear`; `other` has as many, where the ending reads it.
template <int kLanes, Ending kEnding>
inline Float<kLanes> ended(Float<kLanes> linear, const float* other) {
  if constexpr (kEnding == Ending::kAdd)
    return linear + load<kLanes>(other);
  else if constexpr (kEnding == Ending::kMul)
    return linear * load<kLanes>(other);
  else
    return activate<kLanes, kEnding>(linear);
}

// The first output of y that a panel is for.
inline int64_t first_output(const Epilogue& epilogue, int64_t panel) {
  return (epilogue.gated ? panel / 2 : panel) * kPanel;
}

// Brings near what a panel of some rows will meet: rows lie too far apart for a CPU to guess.
inline void fetch_other(const Epilogue& epilogue, int64_t first, int64_t last, int64_t panel) {
  if (!epilogue.other) return;
  for (int64_t row = first; row < last; ++row)
    __builtin_prefetch(epilogue.other + row * epilogue.outputs + first_output(epilogue, panel), 0, 2);
}

// `row_scales` is null where the sums are scaled already: then they are floats.
template <int kLanes, Ending kEnding>
inline void finish_rows(const void* sums, const float* row_scales, int64_t rows, const Epilogue& epilogue,
                        int64_t panel, float* y) {
  const float* scale = &epilogue.scale[panel * epilogue.groups * kPanel];
  const float* bias = &epilogue.bias[panel * kPanel];
  const int64_t first = first_output(epilogue, panel);
  const int64_t count = std::min<int64_t>(kPanel, epilogue.outputs - first);
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
      values[i] += load<kLanes>(bias + i * kLanes);
    }
    const auto finish = [&](const float* others, float* outputs) {
      for (int i = 0; i < kPanel / kLanes; ++i) {
        const Float<kLanes> output = ended<kLanes, kEnding>(values[i], others + i * kLanes);
        std::memcpy(outputs + i * kLanes, &output, sizeof output);
      }
    };
    float* to = y + row * epilogue.outputs + first;
    const float* other = meets_other(kEnding) ? epilogue.other + (to - epilogue.y) : to;
    if (count == kPanel) {
      finish(other, to);
    } else {
      float others[kPanel]{}, outputs[kPanel];
      if constexpr (meets_other(kEnding)) std::memcpy(others, other, count * sizeof(float));
      finish(others, outputs);
      std::memcpy(to, outputs, count * sizeof(float));
    }
  }
}

// Writes outputs of some rows and one panel from sums [row][16]; y points at the first row's output 0. Kept out of
// line: inlined, it would take the registers from the accumulators.
template <int kLanes>
__attribute__((noinline)) void store_panel(const void* sums, const float* row_scales, int64_t rows,
                                           const Epilogue& epilogue, int64_t panel, float* y) {
  switch (epilogue.gated && panel % 2 ? Ending::kMul : epilogue.ending) {
    case Ending::kNone:
      return finish_rows<kLanes, Ending::kNone>(sums, row_scales, rows, epilogue, panel, y);
    case Ending::kRelu:
      return finish_rows<kLanes, Ending::kRelu>(sums, row_scales, rows, epilogue, panel, y);
    case Ending::kGelu:
      return finish_rows<kLanes, Ending::kGelu>(sums, row_scales, rows, epilogue, panel, y);
    case Ending::kGeluTanh:
      return finish_rows<kLanes, Ending::kGeluTanh>(sums, row_scales, rows, epilogue, panel, y);
    case Ending::kSilu:
      return finish_rows<kLanes, Ending::kSilu>(sums, row_scales, rows, epilogue, panel, y);
    case Ending::kAdd:
      return finish_rows<kLanes, Ending::kAdd>(sums, row_scales, rows, epilogue, panel, y);
    case Ending::kMul:
      return finish_rows<kLanes, Ending::kMul>(sums, row_scales, rows, epilogue, panel, y);
  }
}

}  // namespace
}  // namespace slim

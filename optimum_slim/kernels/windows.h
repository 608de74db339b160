// Products with kept blocks for few rows: outputs in lanes, each lane looks its quad of activations up in a window
// of 32.
#pragma once

#include "epilogue.h"
#include "products.h"

namespace slim {
namespace {

// Panel by panel, kRows rows take in step after step of their weights: `add(step, window, sums)` adds one, whose
// activations lie in the first row from `window` on, kUnit bytes for each place of the window.
template <class Isa, int kRows, int kUnit, class Weights, class Add>
inline void step_by_step(const Weights& weights, const Epilogue& epilogue, const QuantizedRows& x, int64_t row,
                         Range panels, float* y, const Add& add) {
  const uint8_t* values = x.values + row * x.stride;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    typename Isa::Sums sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = Isa::load_sums(&weights.initial[panel * kPanel]);
    const int64_t end = weights.start[panel + 1];
    for (int64_t step = weights.start[panel]; step < end; ++step) add(step, values + weights.windows[step] * kUnit, sums);
    alignas(64) int32_t buffer[kRows * kPanel];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) Isa::store(buffer + r * kPanel, sums[r]);
    store_panel<Isa::kFloatLanes>(buffer, x.scales + row, kRows, epilogue, panel, y + row * epilogue.outputs);
  }
}

template <class Isa, int kRows>
inline void window_rows(const WindowWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, int64_t row,
                        Range panels, float* y) {
  const auto add = [&](int64_t step, const uint8_t* window, typename Isa::Sums(&sums)[kRows]) {
    const typename Isa::Indices indices = Isa::load_indices(&weights.indices[step * kPanel]);
    const typename Isa::Signed w = Isa::load_signed(&weights.weights[step * kPanel]);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[r] = Isa::dot(sums[r], Isa::look_up_quads(window + r * x.stride, indices), w);
  };
  step_by_step<Isa, kRows, 4>(weights, epilogue, x, row, panels, y, add);
}

template <class Isa>
void windows(const WindowWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows, Range panels,
             float* y) {
  int64_t row = rows.begin;
  for (; row + 8 <= rows.end; row += 8) window_rows<Isa, 8>(weights, epilogue, x, row, panels, y);
  for (; row + 4 <= rows.end; row += 4) window_rows<Isa, 4>(weights, epilogue, x, row, panels, y);
  for (; row + 2 <= rows.end; row += 2) window_rows<Isa, 2>(weights, epilogue, x, row, panels, y);
  for (; row < rows.end; ++row) window_rows<Isa, 1>(weights, epilogue, x, row, panels, y);
}

}  // namespace
}  // namespace slim

// Products with kept quads or single weights for few rows, by 256-bit vectors: outputs in lanes, each looks its
// activations up in a window of a row, as in windows.h. Such a window is one vector:
//
//   quads:          8 quads, one of them for each output
//   single weights: 16 inputs, any four of them for each output
//
// Activations that meet quads are signed here, as in lanes.h.
#pragma once

#include "avx2.h"
#include "epilogue.h"
#include "products.h"
#include "windows.h"

namespace slim {
namespace {

constexpr Windows kYmmLookUp{/*offset=*/0, /*byte_offset=*/128, /*quads=*/8,
                             /*bytes=*/16, /*byte_unit=*/1,     /*pairs=*/true};

struct QuadWindow {
  using Weights = WindowWeights;
  static constexpr int kUnit = 4;

  static __m256i load(const uint8_t* window) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(window)); }
  static __m256i load_indices(const WindowWeights& weights, int64_t step, int half) {
    const uint8_t* from = &weights.indices[step * kPanel + half * 8];
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
  template <class Isa>
  static __m256i add(__m256i sums, __m256i window, __m256i indices, __m256i weights) {
    const __m256i found = _mm256_permutevar8x32_epi32(window, indices);
    return Isa::add_products(sums, _mm256_abs_epi8(weights), _mm256_sign_epi8(found, weights));
  }
};

struct ByteWindow {
  using Weights = ByteWindowWeights;
  static constexpr int kUnit = 1;

  static __m256i load(const uint8_t* window) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(window)));
  }
  static __m256i load_indices(const ByteWindowWeights& weights, int64_t step, int half) {
    const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(&weights.indices[step * 32]));
    return _mm256_and_si256(half ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
  }
  template <class Isa>
  static __m256i add(__m256i sums, __m256i window, __m256i indices, __m256i weights) {
    return Isa::add_products(sums, _mm256_shuffle_epi8(window, indices), weights);
  }
};

template <class Isa, class Window, int kRows>
void look_up_rows(const typename Window::Weights& weights, const Epilogue& epilogue, const QuantizedRows& x,
                  int64_t row, Range panels, float* y) {
  const auto add = [&](int64_t step, const uint8_t* at, typename Isa::Sums(&sums)[kRows]) {
    const auto* w = reinterpret_cast<const __m256i*>(weights.weights.data()) + step * 2;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i own = _mm256_load_si256(w + half), indices = Window::load_indices(weights, step, half);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        __m256i& sum = sums[r].half[half];
        sum = Window::template add<Isa>(sum, Window::load(at + r * x.stride), indices, own);
      }
    }
  };
  step_by_step<Isa, kRows, Window::kUnit>(weights, epilogue, x, row, panels, y, add);
}

template <class Isa, class Window, int kRows = 4>
void look_up(const typename Window::Weights& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows,
             Range panels, float* y) {
  int64_t row = rows.begin;
  for (; row + kRows <= rows.end; row += kRows) look_up_rows<Isa, Window, kRows>(weights, epilogue, x, row, panels, y);
  if constexpr (kRows > 1) look_up<Isa, Window, kRows - 1>(weights, epilogue, x, {row, rows.end}, panels, y);
}

}  // namespace
}  // namespace slim

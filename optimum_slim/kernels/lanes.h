// Products with kept 4x4 blocks for few rows, by 256-bit vectors: outputs in lanes, two blocks of a block row at a
// time.
//
//   weights:      block 0: output 0, 1, 2, 3  | block 1: output 0, 1, 2, 3     32 bytes as they lie in memory
//   activations:  quad of block 0, four times | quad of block 1, four times
//
// Both halves are added up in the end. Activations are signed here: with their signs changed where a weight is
// negative, they meet the weights' magnitudes.
#pragma once

#include "avx2.h"
#include "epilogue.h"
#include "products.h"

namespace slim {
namespace {

template <class Isa, int kRows>
void lane_rows(const BlockWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, int64_t row, Range panels,
               float* y) {
  const uint8_t* values = x.values + row * x.stride;
  const uint16_t* columns = weights.columns.data();
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    alignas(64) int32_t buffer[kRows * kPanel];
    for (int o = 0; o < kPanel; o += 4) {
      __m256i sums[kRows] = {};
      const auto add_blocks = [&](__m256i w, int64_t one, int64_t other) {
        const __m256i magnitudes = _mm256_abs_epi8(w);
        const uint8_t *first = values + columns[one] * size_t{4}, *second = values + columns[other] * size_t{4};
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m256i a =
              _mm256_blend_epi32(broadcast_quad(first + r * x.stride), broadcast_quad(second + r * x.stride), 0xf0);
          sums[r] = Isa::add_products(sums[r], magnitudes, _mm256_sign_epi8(a, w));
        }
      };
      const int64_t* start = &weights.start[(panel * kPanel + o) / 4 * weights.segments];
      const int64_t end = start[weights.segments];
      int64_t i = *start;
      for (; i + 2 <= end; i += 2)
        add_blocks(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(&weights.weights[i * 4])), i, i + 1);
      if (i < end) {
        const __m128i last = _mm_loadu_si128(reinterpret_cast<const __m128i*>(&weights.weights[i * 4]));
        add_blocks(_mm256_zextsi128_si256(last), i, i);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m128i both = _mm_add_epi32(_mm256_castsi256_si128(sums[r]), _mm256_extracti128_si256(sums[r], 1));
        _mm_store_si128(reinterpret_cast<__m128i*>(buffer + r * kPanel + o), both);
      }
    }
    store_panel<Isa::kFloatLanes>(buffer, x.scales + row, kRows, epilogue, panel, y + row * epilogue.outputs);
  }
}

template <class Isa, int kRows = 8>
void lanes(const BlockWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows, Range panels,
           float* y) {
  int64_t row = rows.begin;
  for (; row + kRows <= rows.end; row += kRows) lane_rows<Isa, kRows>(weights, epilogue, x, row, panels, y);
  if constexpr (kRows > 1) lanes<Isa, kRows - 1>(weights, epilogue, x, {row, rows.end}, panels, y);
}

}  // namespace
}  // namespace slim

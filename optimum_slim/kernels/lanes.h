// Products with kept blocks for few rows, by 256-bit vectors: outputs in lanes, several blocks of a block row at a
// time.
//
//   weights:      block 0: output 0..3 | block 1: output 0..3      32 bytes as they lie in memory (4x4 blocks)
//   activations:  quad of block 0, ..  | quad of block 1, ..       each broadcast to its block's lanes
//
// Blocks of 2 outputs go by fours. Lanes of the same output are added up in the end. Activations
// are signed here: with their signs changed where a weight is negative, they meet the weights' magnitudes.
#pragma once

#include "avx2.h"
#include "epilogue.h"
#include "products.h"

namespace slim {
namespace {

// The quads of kBlocks blocks, each in the lanes of its block; the first of them takes all lanes from kBlock on.
template <int kBlocks, int kBlock = 0>
inline __m256i spread_quads(const uint8_t* row, const uint16_t* columns) {
  const __m256i quad = broadcast_quad(row + columns[kBlock] * size_t{4});
  if constexpr (kBlock + 1 == kBlocks) {
    return quad;
  } else {
    constexpr int kLanes = 8 / kBlocks, kLater = 0xff << (kBlock + 1) * kLanes & 0xff;
    return _mm256_blend_epi32(quad, spread_quads<kBlocks, kBlock + 1>(row, columns), kLater);
  }
}

// Adds lanes of the same output up and writes kOutputs sums.
template <int kOutputs>
inline void store_outputs(int32_t* to, __m256i sums) {
  __m128i total = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  if constexpr (kOutputs == 2) total = _mm_add_epi32(total, _mm_unpackhi_epi64(total, total));
  std::memcpy(to, &total, kOutputs * sizeof(int32_t));
}

template <class Isa, int kRows, int kOutputs>
void lane_rows(const BlockWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, int64_t row, Range panels,
               float* y) {
  constexpr int kBlocks = 8 / kOutputs;
  const uint8_t* values = x.values + row * x.stride;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    alignas(64) int32_t buffer[kRows * kPanel];
    for (int o = 0; o < kPanel; o += kOutputs) {
      __m256i sums[kRows] = {};
      const auto add_blocks = [&](int64_t first, __m256i w) {
        const uint16_t* columns = &weights.columns[first];
        const __m256i magnitudes = _mm256_abs_epi8(w);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
          sums[r] = Isa::add_products(sums[r], magnitudes,
                                      _mm256_sign_epi8(spread_quads<kBlocks>(values + r * x.stride, columns), w));
      };
      const int64_t* start = &weights.start[(panel * kPanel + o) / kOutputs * weights.segments];
      const int64_t end = start[weights.segments];
      const int32_t* quads = weights.weights.data();
      int64_t i = *start;
      for (; i + kBlocks <= end; i += kBlocks)
        add_blocks(i, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(quads + i * kOutputs)));
      if (i < end) {
        const __m256i left = _mm256_set1_epi32(static_cast<int32_t>(end - i) * kOutputs);
        const __m256i kept = _mm256_cmpgt_epi32(left, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        add_blocks(i, _mm256_maskload_epi32(quads + i * kOutputs, kept));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) store_outputs<kOutputs>(buffer + r * kPanel + o, sums[r]);
    }
    store_panel<Isa::kFloatLanes>(buffer, x.scales + row, kRows, epilogue, panel, y + row * epilogue.outputs);
  }
}

template <class Isa, int kOutputs>
void lanes_of(const BlockWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows, Range panels,
              float* y) {
  int64_t row = rows.begin;
  for (; row + 4 <= rows.end; row += 4) lane_rows<Isa, 4, kOutputs>(weights, epilogue, x, row, panels, y);
  for (; row + 2 <= rows.end; row += 2) lane_rows<Isa, 2, kOutputs>(weights, epilogue, x, row, panels, y);
  for (; row < rows.end; ++row) lane_rows<Isa, 1, kOutputs>(weights, epilogue, x, row, panels, y);
}

template <class Isa>
void lanes(const BlockWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows, Range panels,
           float* y) {
  if (weights.outputs == 2)
    lanes_of<Isa, 2>(weights, epilogue, x, rows, panels, y);
  else
    lanes_of<Isa, 4>(weights, epilogue, x, rows, panels, y);
}

}  // namespace
}  // namespace slim

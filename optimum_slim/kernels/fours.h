// Products with single weights for many rows: the bytes of four kept inputs are interleaved into quads on the way, 64
// rows at a time, then multiplied with the four weights of one output.
//
//   input a: row 0, row 1, ..                 rows 0-15:  a0 b0 c0 d0, a1 b1 c1 d1, ..
//   input b: row 0, row 1, ..   2 x unpack    rows 16-31: ..
//   input c: ..                 ----------->  ..
//   input d: ..
#pragma once

#include "avx512.h"
#include "epilogue.h"
#include "products.h"

namespace slim {
namespace {

constexpr int kFourVectors = 4;

// Unpacking works within 128-bit lanes. For its results to hold rows in their order, byte 16 j + 4 v + i of an input
// must be row 16 v + 4 j + i.
void spread_tile(uint8_t* tile, int64_t quads) {
  const __m512i by_input = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (int64_t quad = 0; quad < quads; ++quad) {
    uint8_t* at = tile + quad * 256;
    __m512i v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm512_shuffle_epi8(_mm512_load_si512(at + 64 * i), by_input);
    const __m512i low01 = _mm512_unpacklo_epi32(v[0], v[1]), high01 = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(v[2], v[3]), high23 = _mm512_unpackhi_epi32(v[2], v[3]);
    _mm512_store_si512(at, _mm512_unpacklo_epi64(low01, low23));
    _mm512_store_si512(at + 64, _mm512_unpackhi_epi64(low01, low23));
    _mm512_store_si512(at + 128, _mm512_unpacklo_epi64(high01, high23));
    _mm512_store_si512(at + 192, _mm512_unpackhi_epi64(high01, high23));
  }
}

inline void add_four(const uint8_t* tile, const uint16_t* inputs, int32_t weights, __m512i (&sums)[kFourVectors]) {
  const __m512i w = _mm512_set1_epi32(weights);
  const __m512i a = _mm512_load_si512(tile + inputs[0] * 64), b = _mm512_load_si512(tile + inputs[1] * 64);
  const __m512i c = _mm512_load_si512(tile + inputs[2] * 64), d = _mm512_load_si512(tile + inputs[3] * 64);
  const __m512i low_ab = _mm512_unpacklo_epi8(a, b), high_ab = _mm512_unpackhi_epi8(a, b);
  const __m512i low_cd = _mm512_unpacklo_epi8(c, d), high_cd = _mm512_unpackhi_epi8(c, d);
  sums[0] = Avx512Vnni::dot(sums[0], _mm512_unpacklo_epi16(low_ab, low_cd), w);
  sums[1] = Avx512Vnni::dot(sums[1], _mm512_unpackhi_epi16(low_ab, low_cd), w);
  sums[2] = Avx512Vnni::dot(sums[2], _mm512_unpacklo_epi16(high_ab, high_cd), w);
  sums[3] = Avx512Vnni::dot(sums[3], _mm512_unpackhi_epi16(high_ab, high_cd), w);
}

void fours(const FourWeights& weights, const Epilogue& epilogue, const RowTiles& x, int64_t tile, int64_t rows,
           Range panels, float* y) {
  alignas(64) int32_t sums[kPanel][kFourVectors * kPanel];
  alignas(64) int32_t turned[kPanel * kPanel];  // [row][output]
  const uint8_t* values = x.values + tile * x.bytes;
  const int64_t first = tile * kPanel * kFourVectors;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int o = 0; o < kPanel; ++o) {
      const int64_t output = panel * kPanel + o;
      __m512i acc[kFourVectors];
      for (__m512i& sum : acc) sum = _mm512_set1_epi32(weights.initial[output]);
      const int64_t end = weights.start[output + 1];
      for (int64_t i = weights.start[output]; i < end; ++i)
        add_four(values, &weights.inputs[4 * i], weights.weights[i], acc);
      for (int v = 0; v < kFourVectors; ++v) _mm512_store_si512(&sums[o][v * kPanel], acc[v]);
    }
    for (int v = 0; v < kFourVectors && first + v * kPanel < rows; ++v) {
      Avx512Vnni::transpose(&sums[0][v * kPanel], kFourVectors * kPanel, turned);
      const int64_t begin = first + v * kPanel, count = std::min<int64_t>(kPanel, rows - begin);
      store_panel<Avx512Vnni::kFloatLanes>(turned, x.scales + begin, count, epilogue, panel,
                                           y + begin * epilogue.outputs);
    }
  }
}

}  // namespace
}  // namespace slim

// Products with kept blocks by AVX2, rows in lanes as in blocks.h: blocks go by twos, whose products are added up in 16
// bits before they are widened. That saves every fourth multiplication.
//
//   block 0:  unsigned activations x weights -> 16 bits ..
//                                                        .. + -> 32 bits, added to the sums
//   block 1:  unsigned activations x weights -> 16 bits ..
//
// Packing pairs blocks whose weights are small enough for that. Of the others some fit alone, and the rest go as signed
// activations times the weights' magnitudes: such products always fit.
#pragma once

#include "avx2.h"
#include "blocks.h"

namespace slim {
namespace {

inline __m256i load(const uint8_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }

// Of activations without their offset: sums of two, in 16 bits.
inline __m256i signed_products(__m256i a, __m256i w) {
  const __m256i signed_a = _mm256_xor_si256(a, _mm256_set1_epi8(-128));
  return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(signed_a, w));
}

// As BlockRow of blocks.h, for the first kHalves times 8 rows of a tile.
template <class Isa, int kVectors, int kOutputs, int kHalves>
struct PairedRows {
  static constexpr int kTile = 2 * kVectors;

  static inline void add(const BlockWeights& weights, const uint8_t* tile, int64_t row, int64_t segment, int32_t* to) {
    __m256i sums[kOutputs][kHalves];
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 8
      for (int h = 0; h < kHalves; ++h)
        sums[o][h] = segment == 0 ? _mm256_set1_epi32(weights.initial[row * kOutputs + o])
                                  : _mm256_load_si256(reinterpret_cast<const __m256i*>(to) + o * kTile + h);
    const int64_t part = row * weights.segments + segment;
    const uint16_t* columns = weights.columns.data();
    const int32_t* quads = weights.weights.data();
    const auto activations = [&](int64_t i) { return tile + columns[i] * static_cast<size_t>(32 * kTile); };
    int64_t i = weights.start[part];
    for (const int64_t end = i + 2 * weights.pairs[part]; i < end; i += 2) {
      const uint8_t *one = activations(i), *other = activations(i + 1);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        const __m256i w = _mm256_set1_epi32(quads[i * kOutputs + o]);
        const __m256i v = _mm256_set1_epi32(quads[(i + 1) * kOutputs + o]);
#pragma GCC unroll 8
        for (int h = 0; h < kHalves; ++h)
          sums[o][h] = add_widened(sums[o][h], _mm256_add_epi16(_mm256_maddubs_epi16(load(one + 32 * h), w),
                                                                _mm256_maddubs_epi16(load(other + 32 * h), v)));
      }
    }
    const auto add_alone = [&](int64_t end, auto&& products) {
      for (; i < end; ++i) {
        const uint8_t* alone = activations(i);
#pragma GCC unroll 4
        for (int o = 0; o < kOutputs; ++o) {
          const __m256i w = _mm256_set1_epi32(quads[i * kOutputs + o]);
#pragma GCC unroll 8
          for (int h = 0; h < kHalves; ++h) sums[o][h] = add_widened(sums[o][h], products(load(alone + 32 * h), w));
        }
      }
    };
    add_alone(i + weights.singles[part], [](__m256i a, __m256i w) { return _mm256_maddubs_epi16(a, w); });
    add_alone(weights.start[part + 1], signed_products);
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 8
      for (int h = 0; h < kHalves; ++h) _mm256_store_si256(reinterpret_cast<__m256i*>(to) + o * kTile + h, sums[o][h]);
  }
};

template <class Isa, int kVectors, int kOutputs>
struct PairedTile : PairedRows<Isa, kVectors, kOutputs, 2 * kVectors> {};

template <class Isa, int kVectors, int kOutputs>
struct PairedHalfTile : PairedRows<Isa, kVectors, kOutputs, 1> {};

// Up to 8 rows take half the time of 16.
template <class Isa>
void paired_blocks(const BlockWeights& weights, const Epilogue& epilogue, const RowTiles& x, int64_t tile, int64_t rows,
                   Range panels, float* y) {
  if (x.vectors == 1 && rows - tile * kPanel <= kPanel / 2)
    block_tile<Isa, PairedHalfTile, 1>(weights, epilogue, x, tile, rows, panels, y);
  else
    blocks<Isa, PairedTile>(weights, epilogue, x, tile, rows, panels, y);
}

}  // namespace
}  // namespace slim

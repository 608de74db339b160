// The operations that the products are written in, by 256-bit vectors. `Dot` supplies the dot product of bytes, the one
// thing in which AVX-VNNI differs from AVX2.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "layouts.h"
#include "quantize.h"

namespace slim {
namespace {

inline __m256i broadcast_quad(const void* from) {
  int32_t quad;
  std::memcpy(&quad, from, sizeof quad);
  return _mm256_set1_epi32(quad);
}

// Adds neighbours of 16 bits to sums of 32.
inline __m256i add_widened(__m256i sums, __m256i products) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}

// Transposes 8 x 8 int32 in registers: pairs, then fours, then halves of registers change places.
inline void transpose8(__m256i (&r)[8]) {
  __m256i t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  __m256i u[8];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      u[4 * i + 2 * half] = _mm256_unpacklo_epi64(t[4 * i + half], t[4 * i + 2 + half]);
      u[4 * i + 2 * half + 1] = _mm256_unpackhi_epi64(t[4 * i + half], t[4 * i + 2 + half]);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x20);
    r[4 + i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x31);
  }
}

// One number of eight: `both` makes one vector of two.
template <class Both>
inline int32_t folded(__m256i eight, const Both& both) {
  __m128i four = both(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = both(four, _mm_shuffle_epi32(four, 0x4e));
  four = both(four, _mm_shuffle_epi32(four, 0xb1));
  return _mm_cvtsi128_si32(four);
}

// As Plainly, 32 values at a time.
struct ByYmm {
  static int32_t largest_magnitude(const float* x, int64_t count) {
    __m256i largest[4] = {};
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        largest[j] = _mm256_max_epi32(largest[j], _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i + 8 * j)),
                                                                   _mm256_set1_epi32(0x7fffffff)));
    const __m256i eight = _mm256_max_epi32(_mm256_max_epi32(largest[0], largest[1]),
                                           _mm256_max_epi32(largest[2], largest[3]));
    const int32_t most = folded(eight, [](__m128i a, __m128i b) { return _mm_max_epi32(a, b); });
    return std::max(most, Plainly::largest_magnitude(x + i, count - i));
  }

  static int32_t quantize_values(const float* x, int64_t count, float inverse, int offset, uint8_t* values) {
    // Packing works within 128-bit lanes and leaves the fours of values in another order.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i offsets = _mm256_set1_epi8(static_cast<char>(offset)), ones = _mm256_set1_epi16(1);
    __m256i total = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
      __m256i q[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        q[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * j), _mm256_set1_ps(inverse)));
      const __m256i low = _mm256_packs_epi32(q[0], q[1]), high = _mm256_packs_epi32(q[2], q[3]);
      total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_add_epi16(low, high), ones));
      const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i), _mm256_add_epi8(bytes, offsets));
    }
    return folded(total, [](__m128i a, __m128i b) { return _mm_add_epi32(a, b); }) +
           Plainly::quantize_values(x + i, count - i, inverse, offset, values + i);
  }
};

// What the dot products that take bytes as they are have in common.
struct PlainBytes {
  static constexpr int kGroupedRows = 3;
  static constexpr int kQuadBytes = 4;
  using Bytes = __m256i;
  static Bytes from_unsigned(__m256i bytes) { return bytes; }
  static Bytes broadcast(const void* quad) { return broadcast_quad(quad); }
};

template <class Dot>
struct Ymm {
  static constexpr int kOffset = 128;
  static constexpr int kFloatLanes = 8;
  static constexpr int kRows = Dot::kRows;
  static constexpr int kGroupedRows = Dot::kGroupedRows;
  static constexpr int kPanels = 1;
  static constexpr int kQuadBytes = Dot::kQuadBytes;
  // So many vectors of 16 rows can `fours` take at least.
  static constexpr int kFewVectors = 2;
  static constexpr int kSums = 4;

  struct Sums {
    __m256i half[2];
  };
  using Bytes = typename Dot::Bytes;
  struct Unsigned {
    Bytes half[2];
  };
  using Signed = Bytes;  // broadcast: both halves are equal

  static Sums broadcast_sum(int32_t value) { return {{_mm256_set1_epi32(value), _mm256_set1_epi32(value)}}; }
  static Unsigned load_unsigned(const void* from) {
    const auto* halves = static_cast<const __m256i*>(from);
    return {{Dot::from_unsigned(_mm256_loadu_si256(halves)), Dot::from_unsigned(_mm256_loadu_si256(halves + 1))}};
  }
  static Signed broadcast_signed(const void* from) { return Dot::broadcast(from); }
  // Adds dot products of quads of unsigned and signed bytes. Where that is done in two steps, the products of bytes 0
  // and 1 must fit in 16 bits together, and so must those of 2 and 3.
  static __m256i add_products(__m256i sums, __m256i a, __m256i b) { return Dot::add_products(sums, a, b); }
  static Sums dot(Sums sums, Unsigned a, Signed b) {
    return {{Dot::dot(sums.half[0], a.half[0], b), Dot::dot(sums.half[1], a.half[1], b)}};
  }
  static Sums load_sums(const int32_t* from) {
    const auto* halves = reinterpret_cast<const __m256i*>(from);
    return {{_mm256_load_si256(halves), _mm256_load_si256(halves + 1)}};
  }
  static Sums add(Sums a, Sums b) {
    return {{_mm256_add_epi32(a.half[0], b.half[0]), _mm256_add_epi32(a.half[1], b.half[1])}};
  }
  static void store(int32_t* to, Sums sums) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), sums.half[0]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + 8), sums.half[1]);
  }

  static void transpose(const int32_t* from, int64_t stride, int32_t* to) {
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        __m256i r[8];
        for (int k = 0; k < 8; ++k)
          r[k] = _mm256_load_si256(reinterpret_cast<const __m256i*>(from + (i * 8 + k) * stride + j * 8));
        transpose8(r);
        for (int k = 0; k < 8; ++k)
          _mm256_store_si256(reinterpret_cast<__m256i*>(to + (j * 8 + k) * kPanel + i * 8), r[k]);
      }
  }

  // Unpacking works within 128-bit lanes. For its results to hold rows in their order, byte 16 h + 4 v + i of an input
  // must be row 8 v + 4 h + i, in each 32 rows.
  static void spread_tile(uint8_t* tile, int64_t quads) {
    const __m256i by_input =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    for (int64_t quad = 0; quad < quads; ++quad) {
      auto* at = reinterpret_cast<__m256i*>(tile + quad * 256);
      __m256i v[8];
      for (int i = 0; i < 8; ++i) v[i] = _mm256_shuffle_epi8(_mm256_load_si256(at + i), by_input);
      for (int i = 0; i < 2; ++i) {
        const __m256i* from = v + 4 * i;
        const __m256i low01 = _mm256_unpacklo_epi32(from[0], from[1]), high01 = _mm256_unpackhi_epi32(from[0], from[1]);
        const __m256i low23 = _mm256_unpacklo_epi32(from[2], from[3]), high23 = _mm256_unpackhi_epi32(from[2], from[3]);
        _mm256_store_si256(at + i, _mm256_unpacklo_epi64(low01, low23));
        _mm256_store_si256(at + 2 + i, _mm256_unpackhi_epi64(low01, low23));
        _mm256_store_si256(at + 4 + i, _mm256_unpacklo_epi64(high01, high23));
        _mm256_store_si256(at + 6 + i, _mm256_unpackhi_epi64(high01, high23));
      }
    }
  }

  template <int kVectors>
  static void add_four(const uint8_t* tile, const uint16_t* inputs, int32_t weights, Sums (&sums)[kVectors]) {
    const __m256i w = _mm256_set1_epi32(weights);
#pragma GCC unroll 2
    for (int i = 0; i < kVectors / 2; ++i) {
      const auto load = [&](int input) {
        return _mm256_load_si256(reinterpret_cast<const __m256i*>(tile + inputs[input] * 64) + i);
      };
      const __m256i a = load(0), b = load(1), c = load(2), d = load(3);
      const __m256i low_ab = _mm256_unpacklo_epi8(a, b), high_ab = _mm256_unpackhi_epi8(a, b);
      const __m256i low_cd = _mm256_unpacklo_epi8(c, d), high_cd = _mm256_unpackhi_epi8(c, d);
      Sums &first = sums[2 * i], &second = sums[2 * i + 1];
      first.half[0] = add_products(first.half[0], _mm256_unpacklo_epi16(low_ab, low_cd), w);
      first.half[1] = add_products(first.half[1], _mm256_unpackhi_epi16(low_ab, low_cd), w);
      second.half[0] = add_products(second.half[0], _mm256_unpacklo_epi16(high_ab, high_cd), w);
      second.half[1] = add_products(second.half[1], _mm256_unpackhi_epi16(high_ab, high_cd), w);
    }
  }

  static void pack_tile(const QuantizedRows& from, int64_t rows, int64_t quads, int vectors, uint8_t* tile) {
    for (int v = 0; v < 2 * vectors; ++v)
      for (int64_t quad = 0; quad < quads; quad += 8) {
        __m256i r[8];
        for (int i = 0; i < 8; ++i) {
          const int64_t row = v * 8 + i;
          // A row's stride leaves room for this load to run over its last quad.
          const uint8_t* at = from.values + row * from.stride + quad * 4;
          r[i] = row < rows ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)) : _mm256_setzero_si256();
        }
        transpose8(r);
        for (int i = 0; i < 8 && quad + i < quads; ++i)
          _mm256_store_si256(reinterpret_cast<__m256i*>(tile + ((quad + i) * 2 * vectors + v) * 32), r[i]);
      }
  }
};

}  // namespace
}  // namespace slim

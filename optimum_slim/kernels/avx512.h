// The operations that the products are written in, by AVX-512 with dot products (VNNI).
#pragma once

#include <immintrin.h>

#include <cstring>

#include "layouts.h"

namespace slim {
namespace {

// Transposes 16 x 16 int32 in registers: pairs, then fours, then quarters of registers change places.
inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      r[4 * i + 2 * half] = _mm512_unpacklo_epi64(t[4 * i + half], t[4 * i + 2 + half]);
      r[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(t[4 * i + half], t[4 * i + 2 + half]);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

struct Avx512Vnni {
  static constexpr int kOffset = 128;
  static constexpr int kFloatLanes = 16;
  static constexpr int kRows = 8;
  static constexpr int kGroupedRows = 4;
  static constexpr int kPanels = 2;
  static constexpr int kQuadBytes = 4;
  // So many vectors of 16 rows can `fours` take at least.
  static constexpr int kFewVectors = 4;
  static constexpr int kSums = 16;

  using Sums = __m512i;
  using Signed = __m512i;
  using Unsigned = __m512i;
  using Indices = __m512i;

  static Sums broadcast_sum(int32_t value) { return _mm512_set1_epi32(value); }
  static Sums load_sums(const void* from) { return _mm512_loadu_si512(from); }
  static Unsigned load_unsigned(const void* from) { return _mm512_loadu_si512(from); }
  static Signed load_signed(const void* from) { return _mm512_loadu_si512(from); }
  static Signed broadcast_signed(const void* from) {
    int32_t quad;
    std::memcpy(&quad, from, sizeof quad);
    return _mm512_set1_epi32(quad);
  }
  static Indices load_indices(const void* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
  static Unsigned look_up_quads(const uint8_t* window, Indices indices) {
    return _mm512_permutex2var_epi32(_mm512_loadu_si512(window), indices, _mm512_loadu_si512(window + 64));
  }
  // With the intrinsic, GCC copies every accumulator once a turn of the loop.
  static Sums dot(Sums sums, Unsigned a, Signed b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
    return sums;
  }
  static Sums add(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
  static void store(int32_t* to, Sums sums) { _mm512_store_si512(to, sums); }

  static __m512 load_some(const float* from, int64_t count) {
    return count >= 16 ? _mm512_loadu_ps(from)
                       : _mm512_maskz_loadu_ps(count > 0 ? static_cast<__mmask16>((1u << count) - 1) : 0, from);
  }

  // As Plainly of quantize.h, 64 values at a time.
  static int32_t largest_magnitude(const float* x, int64_t count) {
    __m512i largest[4] = {};
    for (int64_t i = 0; i < count; i += 64)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        largest[j] = _mm512_max_epi32(
            largest[j], _mm512_and_epi32(_mm512_castps_si512(load_some(x + i + 16 * j, count - i - 16 * j)),
                                         _mm512_set1_epi32(0x7fffffff)));
    return _mm512_reduce_max_epi32(
        _mm512_max_epi32(_mm512_max_epi32(largest[0], largest[1]), _mm512_max_epi32(largest[2], largest[3])));
  }

  static int32_t quantize_values(const float* x, int64_t count, float inverse, int offset, uint8_t* values) {
    // Packing works within 128-bit lanes and leaves the fours of values in another order.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i offsets = _mm512_set1_epi8(static_cast<char>(offset));
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += 64) {
      __m512i q[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        q[j] =
            _mm512_cvtps_epi32(_mm512_mul_ps(load_some(x + i + 16 * j, count - i - 16 * j), _mm512_set1_ps(inverse)));
      const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
      const __m512i signed_values = _mm512_permutexvar_epi32(order, packed);
      total = dot(total, _mm512_set1_epi8(1), signed_values);
      _mm512_storeu_si512(values + i, _mm512_add_epi8(signed_values, offsets));
    }
    return _mm512_reduce_add_epi32(total);
  }

  static void transpose(const int32_t* from, int64_t stride, int32_t* to) {
    __m512i r[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(from + i * stride);
    transpose16(r);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * 16, r[i]);
  }

  // Unpacking works within 128-bit lanes. For its results to hold rows in their order, byte 16 j + 4 v + i of an input
  // must be row 16 v + 4 j + i.
  static void spread_tile(uint8_t* tile, int64_t quads) {
    const __m512i by_input =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
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

  static void add_four(const uint8_t* tile, const uint16_t* inputs, int32_t weights, Sums (&sums)[4]) {
    const __m512i w = _mm512_set1_epi32(weights);
    const __m512i a = _mm512_load_si512(tile + inputs[0] * 64), b = _mm512_load_si512(tile + inputs[1] * 64);
    const __m512i c = _mm512_load_si512(tile + inputs[2] * 64), d = _mm512_load_si512(tile + inputs[3] * 64);
    const __m512i low_ab = _mm512_unpacklo_epi8(a, b), high_ab = _mm512_unpackhi_epi8(a, b);
    const __m512i low_cd = _mm512_unpacklo_epi8(c, d), high_cd = _mm512_unpackhi_epi8(c, d);
    sums[0] = dot(sums[0], _mm512_unpacklo_epi16(low_ab, low_cd), w);
    sums[1] = dot(sums[1], _mm512_unpackhi_epi16(low_ab, low_cd), w);
    sums[2] = dot(sums[2], _mm512_unpacklo_epi16(high_ab, high_cd), w);
    sums[3] = dot(sums[3], _mm512_unpackhi_epi16(high_ab, high_cd), w);
  }

  static void pack_tile(const QuantizedRows& from, int64_t rows, int64_t quads, int vectors, uint8_t* tile) {
    for (int v = 0; v < vectors; ++v)
      for (int64_t quad = 0; quad < quads; quad += 16) {
        __m512i r[16];
        for (int i = 0; i < 16; ++i) {
          const int64_t row = v * 16 + i;
          // A row's stride leaves room for this load to run over its last quad.
          r[i] = row < rows ? _mm512_loadu_si512(from.values + row * from.stride + quad * 4) : _mm512_setzero_si512();
        }
        transpose16(r);
        for (int i = 0; i < 16 && quad + i < quads; ++i)
          _mm512_store_si512(tile + ((quad + i) * vectors + v) * 64, r[i]);
      }
  }
};

}  // namespace
}  // namespace slim

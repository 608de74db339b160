// Softmax attention of one head after the other, in floats: nothing is laid out anew but the keys of one head.
#pragma once

#include <algorithm>
#include <limits>

#include "activations.h"
#include "memory.h"
#include "products.h"

namespace slim {
namespace {

template <int kLanes>
inline Float<kLanes> splat(float value) {
#if defined(__AVX512F__)
  if constexpr (kLanes == 16) return (Float<16>)_mm512_set1_ps(value);
#elif defined(__AVX__)
  if constexpr (kLanes == 8) return (Float<8>)_mm256_set1_ps(value);
#endif
  return Float<kLanes>{} + value;
}

// Queries that are answered together, so that each key and value is loaded once for all of them.
template <int kLanes>
constexpr int kQueries = kLanes == 16 ? 4 : 2;

template <int kLanes>
struct HeadScratch {
  int64_t padded;  // keys, rounded up to whole vectors
  float* keys;     // [padded / lanes][size][lanes]
  float* scores;   // [kQueries][padded]
};

template <int kLanes>
inline void pack_keys(const Attention& a, const float* key, float* to) {
  const int64_t stride = a.heads * a.size;
  for (int64_t first = 0; first < a.keys; first += kLanes, to += a.size * kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, a.keys - first);
    for (int64_t i = 0; i < a.size; ++i)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        to[i * kLanes + lane] = lane < count ? key[(first + lane) * stride + i] : 0.0f;
  }
}

// Products of some queries with `kVectors` vectors of keys, from key `at` on.
template <int kLanes, int kVectors>
inline void score(const Attention& a, const float* const* queries, const HeadScratch<kLanes>& head, int64_t at) {
  Float<kLanes> sums[kQueries<kLanes>][kVectors] = {};
  const float* keys = head.keys + at * a.size;
  for (int64_t i = 0; i < a.size; ++i) {
    Float<kLanes> key[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) key[v] = load<kLanes>(keys + (v * a.size + i) * kLanes);
#pragma GCC unroll 4
    for (int q = 0; q < kQueries<kLanes>; ++q)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[q][v] = fused(splat<kLanes>(queries[q][i]), key[v], sums[q][v]);
  }
#pragma GCC unroll 4
  for (int q = 0; q < kQueries<kLanes>; ++q)
    std::memcpy(head.scores + q * head.padded + at, sums[q], sizeof sums[q]);
}

// Turns one query's scores into e^(score - largest), and returns one over their sum.
template <int kLanes>
inline float exponentials(const Attention& a, const float* mask, int64_t padded, float* scores) {
  using F = Float<kLanes>;
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  const int64_t whole = a.keys / kLanes * kLanes;
  F largest = splat<kLanes>(kLowest);
  for (int64_t t = 0; t < whole; t += kLanes) {
    const F value = load<kLanes>(scores + t) + load<kLanes>(mask + t);
    std::memcpy(scores + t, &value, sizeof value);
    largest = value > largest ? value : largest;
  }
  float most = kLowest;
  for (int64_t t = whole; t < padded; ++t) {
    scores[t] = t < a.keys ? scores[t] + mask[t] : kLowest;
    most = std::max(most, scores[t]);
  }
  for (int lane = 0; lane < kLanes; ++lane) most = std::max(most, largest[lane]);
  F sum{};
  for (int64_t t = 0; t < padded; t += kLanes) {
    const F value = load<kLanes>(scores + t) - most;
    F power = exponential<kLanes>(value);
    power = value == value ? power : value;  // NaN stays NaN
    std::memcpy(scores + t, &power, sizeof power);
    sum += power;
  }
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return 1.0f / total;
}

// Adds up `kVectors` vectors of the values, weighted by the powers of some queries, of which `count` are real.
template <int kLanes, int kVectors>
inline void weigh(const Attention& a, const float* value, const HeadScratch<kLanes>& head, const float* inverse,
                  int64_t count, float* output) {
  const int64_t stride = a.heads * a.size;
  Float<kLanes> sums[kQueries<kLanes>][kVectors] = {};
  for (int64_t t = 0; t < a.keys; ++t) {
    Float<kLanes> row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = load<kLanes>(value + t * stride + v * kLanes);
#pragma GCC unroll 4
    for (int q = 0; q < kQueries<kLanes>; ++q)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sums[q][v] = fused(splat<kLanes>(head.scores[q * head.padded + t]), row[v], sums[q][v]);
  }
  for (int q = 0; q < count; ++q)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Float<kLanes> result = sums[q][v] * inverse[q];
      std::memcpy(output + q * stride + v * kLanes, &result, sizeof result);
    }
}

// The last values of a head whose size is no whole number of vectors.
template <int kLanes>
inline void weigh_one(const Attention& a, const float* value, const HeadScratch<kLanes>& head, const float* inverse,
                      int64_t count, float* output) {
  const int64_t stride = a.heads * a.size;
  for (int64_t q = 0; q < count; ++q) {
    float sum = 0;
    for (int64_t t = 0; t < a.keys; ++t) sum += head.scores[q * head.padded + t] * value[t * stride];
    output[q * stride] = sum * inverse[q];
  }
}

template <int kLanes>
void attend(const Attention& a, Range heads, float* scratch) {
  constexpr int kMany = kQueries<kLanes>;
  const int64_t stride = a.heads * a.size, padded = round_up(a.keys, kLanes);
  const HeadScratch<kLanes> head{padded, scratch, scratch + padded * a.size};
  for (int64_t at = heads.begin; at < heads.end; ++at) {
    const int64_t batch = at / a.heads, number = at % a.heads, place = number * a.size;
    const float* query = a.query + batch * a.queries * stride + place;
    const float* value = a.value + batch * a.keys * stride + place;
    const float* mask = a.mask + batch * a.mask_strides[0] + number * a.mask_strides[1];
    float* output = a.output + batch * a.queries * stride + place;
    pack_keys<kLanes>(a, a.key + batch * a.keys * stride + place, head.keys);
    for (int64_t first = 0; first < a.queries; first += kMany) {
      const int64_t count = std::min<int64_t>(kMany, a.queries - first);
      const float* some[kMany];
      for (int q = 0; q < kMany; ++q) some[q] = query + (first + std::min<int64_t>(q, count - 1)) * stride;
      int64_t t = 0;
      for (; t + 4 * kLanes <= padded; t += 4 * kLanes) score<kLanes, 4>(a, some, head, t);
      for (; t < padded; t += kLanes) score<kLanes, 1>(a, some, head, t);
      float inverse[kMany];
      for (int q = 0; q < kMany; ++q)
        inverse[q] = exponentials<kLanes>(a, mask + (first + std::min<int64_t>(q, count - 1)) * a.mask_strides[2],
                                          padded, head.scores + q * padded);
      int64_t i = 0;
      float* to = output + first * stride;
      for (; i + 4 * kLanes <= a.size; i += 4 * kLanes) weigh<kLanes, 4>(a, value + i, head, inverse, count, to + i);
      for (; i + 2 * kLanes <= a.size; i += 2 * kLanes) weigh<kLanes, 2>(a, value + i, head, inverse, count, to + i);
      for (; i + kLanes <= a.size; i += kLanes) weigh<kLanes, 1>(a, value + i, head, inverse, count, to + i);
      for (; i < a.size; ++i) weigh_one<kLanes>(a, value + i, head, inverse, count, to + i);
    }
  }
}

}  // namespace
}  // namespace slim

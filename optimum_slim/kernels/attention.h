// Softmax attention of one head after the other, in floats. Where many queries meet the keys of a head, these are laid
// out anew, with keys in lanes; few queries meet them where they lie. Keys that a query does not see cost nothing where
// they come first or last, as they do in a prompt.
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

// Queries that are answered together, and vectors of keys or values that each meets: as many as the registers hold.
template <int kLanes>
constexpr int kQueries = kLanes == 16 ? 4 : kLanes == 8 ? 6 : 2;
template <int kLanes, int kMany>
constexpr int kVectors = kMany > 1 && kLanes == 8 ? 2 : kMany == 1 && kLanes < 16 ? 8 : 4;

// A vector that stays in its register: else GCC loads it once more for each product.
template <int kLanes>
[[gnu::always_inline]] inline Float<kLanes> load_once(const float* from) {
  Float<kLanes> value = load<kLanes>(from);
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__AVX__)
  asm("" : "+x"(value));
#endif
  return value;
}

constexpr int64_t kFewQueries = 4;  // for which laying out the keys would cost more than it gains

constexpr float kLowest = std::numeric_limits<float>::lowest();

template <int kLanes>
struct AttentionHead {
  const Attention& a;
  int64_t batch, number;
  int64_t padded;  // keys, rounded up to whole vectors
  float* packed;   // keys: [padded / lanes][size][lanes]
  float* scores;   // [kQueries][padded]
  float* masks;    // likewise

  const float* keys() const { return a.key + place(); }
  const float* values() const { return a.value + place(); }
  int64_t place() const {
    return batch * a.kv_strides[0] + number / (a.heads / a.kv_heads) * a.kv_strides[1];
  }
  int64_t mask_place(int64_t query) const {
    return batch * a.mask_strides[0] + number * a.mask_strides[1] + query * a.mask_strides[2];
  }

  const Sight& sight(int64_t query) const {
    return a.sights[batch * a.sight_strides[0] + number * a.sight_strides[1] + query];
  }

  // What is added to the scores of a query, by key; null where that is nothing.
  const float* mask_of(int64_t query, float* own) const {
    const Sight& seen = sight(query);
    if (seen.solid) return nullptr;
    const int64_t at = mask_place(query);
    if (a.mask) return a.mask + at;
    for (int64_t t = seen.begin; t < seen.end; ++t) own[t] = a.seen[at + t] ? 0.0f : kLowest;
    return own;
  }

  void pack_keys() const {
    const float* key = keys();
    float* to = packed;
    for (int64_t first = 0; first < a.keys; first += kLanes, to += a.size * kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, a.keys - first);
      for (int64_t i = 0; i < a.size; ++i)
        for (int64_t lane = 0; lane < kLanes; ++lane)
          to[i * kLanes + lane] = lane < count ? key[(first + lane) * a.kv_strides[2] + i] : 0.0f;
    }
  }

  // Products of some queries with some vectors of keys, from key `at` on.
  template <int kMany, int kSome>
  void score(const float* const* queries, int64_t at) const {
    Float<kLanes> sums[kMany][kSome] = {};
    const float* from = packed + at * a.size;
    for (int64_t i = 0; i < a.size; ++i) {
      Float<kLanes> some[kSome];
#pragma GCC unroll 8
      for (int v = 0; v < kSome; ++v) some[v] = load_once<kLanes>(from + (v * a.size + i) * kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < kMany; ++q)
#pragma GCC unroll 8
        for (int v = 0; v < kSome; ++v) sums[q][v] = fused(splat<kLanes>(queries[q][i]), some[v], sums[q][v]);
    }
#pragma GCC unroll 8
    for (int q = 0; q < kMany; ++q)
#pragma GCC unroll 8
      for (int v = 0; v < kSome; ++v) std::memcpy(scores + q * padded + at + v * kLanes, &sums[q][v], sizeof sums[q][v]);
  }

  // Products of a query with some keys, where they lie.
  void score_in_place(const float* query, int64_t begin, int64_t end) const {
    const int64_t whole = a.size / kLanes * kLanes;
    const float* key = keys() + begin * a.kv_strides[2];
    for (int64_t t = begin; t < end; ++t, key += a.kv_strides[2]) {
      Float<kLanes> sums[2] = {};
      int64_t i = 0;
      for (; i + 2 * kLanes <= whole; i += 2 * kLanes)
        for (int j = 0; j < 2; ++j)
          sums[j] = fused(load<kLanes>(query + i + j * kLanes), load<kLanes>(key + i + j * kLanes), sums[j]);
      for (; i < whole; i += kLanes) sums[0] = fused(load<kLanes>(query + i), load<kLanes>(key + i), sums[0]);
      float sum = total(sums[0] + sums[1]);
      for (; i < a.size; ++i) sum += query[i] * key[i];
      scores[t] = sum;
    }
  }

  template <class Both>
  static float folded(Float<kLanes> values, const Both& both) {
    float halves[kLanes];
    std::memcpy(halves, &values, sizeof halves);
#pragma GCC unroll 8
    for (int count = kLanes / 2; count; count /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < count; ++i) halves[i] = both(halves[i], halves[i + count]);
    return halves[0];
  }
  static float total(Float<kLanes> values) {
    return folded(values, [](float one, float other) { return one + other; });
  }
  static float most(Float<kLanes> values) {
    return folded(values, [](float one, float other) { return one < other ? other : one; });
  }

  // Scales one query's scores from `begin` to `end`, which are whole vectors, adds the mask, and returns the largest.
  Float<kLanes> masked(const Sight& sight, const float* mask, int64_t begin, int64_t end, float* own) const {
    using F = Float<kLanes>;
    F largest = splat<kLanes>(kLowest);
    const F scale = splat<kLanes>(a.scale);
    for (int64_t t = begin; t < end; t += kLanes) {
      F value = load<kLanes>(own + t) * scale;
      if (t >= sight.begin && t + kLanes <= sight.end) {
        if (mask) value += load<kLanes>(mask + t);
      } else {
        if (mask)  // a whole vector of it might not be there
          for (int lane = 0; lane < kLanes; ++lane)
            if (t + lane >= sight.begin && t + lane < sight.end) value[lane] += mask[t + lane];
        value = within(sight, t) ? value : splat<kLanes>(kLowest);
      }
      std::memcpy(own + t, &value, sizeof value);
      largest = value > largest ? value : largest;
    }
    return largest;
  }

  // Turns them into e^(score - largest), 0 where the query does not see, and returns one over their sum.
  float exponentials(const Sight& sight, float most, int64_t begin, int64_t end, float* own) const {
    using F = Float<kLanes>;
    F sum{};
    for (int64_t t = begin; t < end; t += kLanes) {
      const F value = load<kLanes>(own + t) - most;
      F power = exponential<kLanes>(value);
      power = value == value ? power : value;  // NaN stays NaN
      if (t < sight.begin || t + kLanes > sight.end)  // all are alike where nothing is seen, but not these
        power = within(sight, t) ? power : F{};
      std::memcpy(own + t, &power, sizeof power);
      sum += power;
    }
    return 1.0f / total(sum);
  }

  // Which keys of the vector at `t` are between the first and the last that is seen.
  static Int<kLanes> within(const Sight& sight, int64_t t) {
    Int<kLanes> lanes;
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
    return (lanes >= static_cast<int32_t>(sight.begin - t)) & (lanes < static_cast<int32_t>(sight.end - t));
  }

  // Adds up some vectors of the values, weighted by the powers of some queries.
  template <int kMany, int kSome>
  void weigh(const float* value, int64_t begin, int64_t end, const float* inverse, int64_t count, float* output) const {
    Float<kLanes> sums[kMany][kSome] = {};
    const float* from = value + begin * a.kv_strides[2];
    for (int64_t t = begin; t < end; ++t, from += a.kv_strides[2]) {
      Float<kLanes> some[kSome];
#pragma GCC unroll 8
      for (int v = 0; v < kSome; ++v) some[v] = load_once<kLanes>(from + v * kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < kMany; ++q)
#pragma GCC unroll 8
        for (int v = 0; v < kSome; ++v)
          sums[q][v] = fused(splat<kLanes>(scores[q * padded + t]), some[v], sums[q][v]);
    }
#pragma GCC unroll 8
    for (int q = 0; q < kMany; ++q)
#pragma GCC unroll 8
      for (int v = 0; v < kSome; ++v) {
        const Float<kLanes> result = sums[q][v] * inverse[q];
        if (q < count) std::memcpy(output + q * a.heads * a.size + v * kLanes, &result, sizeof result);
      }
  }

  // The last values of a head whose size is no whole number of vectors.
  void weigh_one(const float* value, int64_t begin, int64_t end, const float* inverse, int64_t count,
                 float* output) const {
    for (int64_t q = 0; q < count; ++q) {
      float sum = 0;
      for (int64_t t = begin; t < end; ++t) sum += scores[q * padded + t] * value[t * a.kv_strides[2]];
      output[q * a.heads * a.size] = sum * inverse[q];
    }
  }

  // Answers `count` queries, of which there are kMany unless they are the last.
  template <int kMany, bool kPacked>
  void answer(int64_t first, int64_t count) const {
    constexpr int kWidest = kVectors<kLanes, kMany>;
    const int64_t row = (batch * a.queries + first) * a.heads * a.size + number * a.size;
    const float* some[kMany];
    int64_t begin = a.keys, end = 0;
    for (int q = 0; q < kMany; ++q) {
      const int64_t query = std::min<int64_t>(q, count - 1);
      some[q] = a.query + row + query * a.heads * a.size;
      begin = std::min(begin, sight(first + query).begin / kLanes * kLanes);
      end = std::max(end, sight(first + query).end);
    }
    const int64_t whole = round_up(end, kLanes);
    if constexpr (kPacked) {
      int64_t t = begin;
      for (; t + kWidest * kLanes <= whole; t += kWidest * kLanes) score<kMany, kWidest>(some, t);
      for (; t < whole; t += kLanes) score<kMany, 1>(some, t);
    } else {
      score_in_place(some[0], begin, end);
    }
    // One step for all queries before the next: what a step ends with makes the next one wait.
    const auto query = [&](int q) { return first + std::min<int64_t>(q, count - 1); };
    Float<kLanes> largest[kMany];
    for (int q = 0; q < kMany; ++q) {
      const float* mask = mask_of(query(q), masks + q * padded);
      largest[q] = masked(sight(query(q)), mask, begin, whole, scores + q * padded);
    }
    float inverse[kMany];
    for (int q = 0; q < kMany; ++q)
      inverse[q] = exponentials(sight(query(q)), most(largest[q]), begin, whole, scores + q * padded);
    const float* value = values();
    float* to = a.output + row;
    int64_t i = 0;
    for (; i + kWidest * kLanes <= a.size; i += kWidest * kLanes)
      weigh<kMany, kWidest>(value + i, begin, end, inverse, count, to + i);
    for (; i + kLanes <= a.size; i += kLanes) weigh<kMany, 1>(value + i, begin, end, inverse, count, to + i);
    for (; i < a.size; ++i) weigh_one(value + i, begin, end, inverse, count, to + i);
  }
};

template <int kLanes>
void attend(const Attention& a, Range heads, float* scratch) {
  constexpr int kMany = kQueries<kLanes>;
  static_assert(kLanes <= kMostLanes && kMany <= kMostQueries, "they fit in the scratch");
  const int64_t padded = round_up(a.keys, kLanes);
  float* const scores = scratch + padded * a.size;
  AttentionHead<kLanes> head{a, 0, 0, padded, scratch, scores, scores + padded * kMany};
  const float* packed = nullptr;
  for (int64_t at = heads.begin; at < heads.end; ++at) {
    head.batch = at / a.heads, head.number = at % a.heads;
    if (a.queries < kFewQueries) {
      for (int64_t query = 0; query < a.queries; ++query) head.template answer<1, false>(query, 1);
      continue;
    }
    if (head.keys() != packed) head.pack_keys();
    packed = head.keys();
    for (int64_t first = 0; first < a.queries; first += kMany)
      head.template answer<kMany, true>(first, std::min<int64_t>(kMany, a.queries - first));
  }
}

}  // namespace
}  // namespace slim

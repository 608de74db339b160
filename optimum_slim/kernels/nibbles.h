// The product with weights of 4 bits, which have a scale for each group of inputs. Some groups of a panel are unpacked to
// bytes into the nearest cache, where all rows meet them:
//
//            panel            weights: one vector a quad (16 outputs x 4 inputs), unsigned, the zero point is taken out of
//   row 0    acc              the sums of a group
//   row 1    acc              activations: one quad of a row, broadcast to all lanes
//
// Weights so small leave room in 16 bits: where an instruction set has no dot product of bytes, several quads are added up
// in them before they are widened.
#pragma once

#include "epilogue.h"
#include "products.h"

namespace slim {
namespace {

// Sums of a few quads, for instruction sets with a dot product of bytes.
template <class Isa>
struct ByDot {
  static constexpr int kRows = Isa::kGroupedRows;
  using Short = typename Isa::Sums;
  using Weights = typename Isa::Unsigned;
  static Weights load(const uint8_t* weights) { return Isa::load_unsigned(weights); }
  static Short first(const Weights& weights, const uint8_t* quad) {
    return add(Isa::broadcast_sum(0), weights, quad);
  }
  static Short add(Short sums, const Weights& weights, const uint8_t* quad) {
    return Isa::dot(sums, weights, Isa::broadcast_signed(quad));
  }
  static typename Isa::Sums widened(typename Isa::Sums sums, Short more) { return Isa::add(sums, more); }
};

// Two quads of a panel lie in 64 bytes, the first in the low halves.
template <class Isa>
[[gnu::always_inline]] inline void unpack_nibbles(const uint8_t* packed, int64_t pairs, uint8_t* to) {
  typedef uint8_t Bytes __attribute__((vector_size(4 * Isa::kFloatLanes)));
  for (int64_t i = 0; i < pairs; ++i)
    for (size_t part = 0; part < 64; part += sizeof(Bytes)) {
      Bytes both;
      std::memcpy(&both, packed + 64 * i + part, sizeof both);
      const Bytes low = both & 15, high = both >> 4;
      std::memcpy(to + 128 * i + part, &low, sizeof low);
      std::memcpy(to + 128 * i + 64 + part, &high, sizeof high);
    }
}

template <class Isa, class Dot, bool kZeroPoints>
struct Nibbles {
  static constexpr int kLanes = Isa::kFloatLanes;
  static constexpr int kRowsAtOnce = 64;          // that share what is unpacked
  static constexpr int64_t kQuadsUnpacked = 128;  // at most; no group has more than half as many
  static constexpr int kLongestShort = 8;         // quads: 2 * 15 * 127 * 8 fits in 16 bits
  using Totals = Float<kLanes>[kPanel / kLanes];  // of a row
  using Sums = typename Isa::Sums;

  const NibbleWeights& weights;
  const Epilogue& epilogue;
  const QuantizedRows& x;

  void run(Range rows, Range panels, float* y) const {
    alignas(64) uint8_t unpacked[kQuadsUnpacked * 64];
    alignas(64) Totals totals[kRowsAtOnce];
    const int64_t all = epilogue.groups, quads = weights.group_quads, step = kQuadsUnpacked / quads;
    for (Range some{rows.begin, 0}; some.begin < rows.end; some.begin = some.end) {
      some.end = std::min(some.begin + kRowsAtOnce, rows.end);
      const int64_t count = some.end - some.begin;
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const uint8_t* packed = &weights.weights[panel * all * quads * 32];
        std::memset(totals, 0, count * sizeof totals[0]);
        if (count == 1) {  // the weights wait for the memory: a single row unpacks them on its way
          add_groups<1, true>(some, panel, {0, all}, packed, totals);
        } else {
          for (Range groups{0, 0}; groups.begin < all; groups.begin = groups.end) {
            groups.end = std::min(groups.begin + step, all);
            unpack_nibbles<Isa>(packed + groups.begin * quads * 32, (groups.end - groups.begin) * quads / 2, unpacked);
            add_groups<Dot::kRows, false>(some, panel, groups, unpacked, totals);
          }
        }
        store_panel<kLanes>(totals, nullptr, count, epilogue, panel, y + some.begin * epilogue.outputs);
      }
    }
  }

  // What some groups add to the totals of some rows.
  template <int kRows, bool kPacked>
  void add_groups(Range rows, int64_t panel, Range groups, const uint8_t* from, Totals* totals) const {
    int64_t row = rows.begin;
    for (; row + kRows <= rows.end; row += kRows, totals += kRows) {
      if (weights.group_quads % kLongestShort)
        add_rows<kRows, kLongestShort / 2, false, kPacked>(row, panel, groups, from, totals);
      else if (weights.group_quads == kLongestShort)
        add_rows<kRows, kLongestShort, true, kPacked>(row, panel, groups, from, totals);
      else
        add_rows<kRows, kLongestShort, false, kPacked>(row, panel, groups, from, totals);
    }
    if constexpr (kRows > 1)
      if (row < rows.end) add_groups<kRows / 2, kPacked>({row, rows.end}, panel, groups, from, totals);
  }

  // kStep quads are added up at once, which are all of a group if kWhole.
  template <int kRows, int kStep, bool kWhole, bool kPacked>
  void add_rows(int64_t row, int64_t panel, Range groups, const uint8_t* from, Totals* totals) const {
    Totals own[kRows];
    std::memcpy(own, totals, sizeof own);
    const int64_t all = epilogue.groups, quads = weights.group_quads;
    for (int64_t g = groups.begin; g < groups.end; ++g) {
      const int64_t place = (panel * all + g) * kPanel;
      const uint8_t* values = x.values + row * x.stride + g * quads * 4;
      Sums sums[kRows];
      typename Dot::Short some[kRows];
      add_quads<kRows, kStep, kPacked>(from, values, some);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sums[r] = Dot::widened(start(place, x.sums[(row + r) * all + g]), some[r]);
      from += kStep * (kPacked ? 32 : 64);
      if constexpr (!kWhole)
        for (int64_t quad = kStep; quad < quads; quad += kStep, from += kStep * (kPacked ? 32 : 64)) {
          add_quads<kRows, kStep, kPacked>(from, values + quad * 4, some);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) sums[r] = Dot::widened(sums[r], some[r]);
        }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        add_scaled<kLanes>(sums[r], x.scales[(row + r) * all + g], &epilogue.scale[place], own[r]);
    }
    std::memcpy(totals, own, sizeof own);
  }

  template <int kRows, int kStep, bool kPacked>
  [[gnu::always_inline]] void add_quads(const uint8_t* from, const uint8_t* values,
                                        typename Dot::Short (&some)[kRows]) const {
#pragma GCC unroll 4
    for (int q = 0; q < kStep; q += 2) {
      if constexpr (kPacked) {
        alignas(64) uint8_t pair[128];
        unpack_nibbles<Isa>(from + q * 32, 1, pair);
        add_quad<kRows>(pair, values + q * 4, q == 0, some);
        add_quad<kRows>(pair + 64, values + q * 4 + 4, false, some);
      } else {
        add_quad<kRows>(from + q * 64, values + q * 4, q == 0, some);
        add_quad<kRows>(from + q * 64 + 64, values + q * 4 + 4, false, some);
      }
    }
  }

  template <int kRows>
  [[gnu::always_inline]] void add_quad(const uint8_t* unpacked, const uint8_t* values, bool first,
                                       typename Dot::Short (&some)[kRows]) const {
    const typename Dot::Weights w = Dot::load(unpacked);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const uint8_t* quad = values + r * x.stride;
      some[r] = first ? Dot::first(w, quad) : Dot::add(some[r], w, quad);
    }
  }

  // What zero points make of the sum of a row's activations.
  [[gnu::always_inline]] Sums start(int64_t place, int32_t correction) const {
    if constexpr (!kZeroPoints) return Isa::broadcast_sum(correction);
    Int<kLanes> ints[kPanel / kLanes];
    for (int i = 0; i < kPanel / kLanes; ++i) {
      typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
      Shorts zero_points;
      std::memcpy(&zero_points, &weights.zero_points[place + i * kLanes], sizeof zero_points);
      ints[i] = __builtin_convertvector(zero_points, Int<kLanes>) * correction;
    }
    Sums sums;
    std::memcpy(&sums, ints, sizeof sums);
    return sums;
  }
};

template <class Isa, class Dot = ByDot<Isa>>
void nibbles(const NibbleWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows, Range panels,
             float* y) {
  if (weights.zero_points.empty())
    Nibbles<Isa, Dot, false>{weights, epilogue, x}.run(rows, panels, y);
  else
    Nibbles<Isa, Dot, true>{weights, epilogue, x}.run(rows, panels, y);
}

}  // namespace
}  // namespace slim

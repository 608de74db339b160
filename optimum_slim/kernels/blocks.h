// Products with kept blocks only, rows in lanes: a kept quad of an output is broadcast and multiplied with the same
// quad of 16 rows a vector. Outputs that share a block share the activations that it loads.
//
//              rows 0-15   rows 16-31   ..       activations: one vector each for a quad and 16 rows
//   output 0   acc         acc                   weights: one quad, broadcast to all lanes
//   output 1   acc         acc
#pragma once

#include "epilogue.h"
#include "products.h"

namespace slim {
namespace {

// Adds one block row's share of a segment to its sums [output][16 * kVectors]. With few sums in registers, a dot
// product would wait for the one before: then several blocks go into sums of their own.
template <class Isa, int kVectors, int kOutputs>
struct BlockRow {
  static inline void add(const BlockWeights& weights, const uint8_t* tile, int64_t row, int64_t segment, int32_t* to) {
    constexpr int kChains = std::max(1, std::min(4, Isa::kSums) / (kVectors * kOutputs));
    typename Isa::Sums sums[kChains][kOutputs][kVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          sums[c][o][v] = c              ? Isa::broadcast_sum(0)
                          : segment == 0 ? Isa::broadcast_sum(weights.initial[row * kOutputs + o])
                                         : Isa::load_sums(to + (o * kVectors + v) * kPanel);
    const uint16_t* columns = weights.columns.data();
    const int32_t* quads = weights.weights.data();
    const auto add_block = [&](int64_t i, typename Isa::Sums(&own)[kOutputs][kVectors]) {
      const uint8_t* from = tile + columns[i] * static_cast<size_t>(64 * kVectors);
      typename Isa::Unsigned a[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) a[v] = Isa::load_unsigned(from + 64 * v);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        const typename Isa::Signed w = Isa::broadcast_signed(quads + i * kOutputs + o);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) own[o][v] = Isa::dot(own[o][v], a[v], w);
      }
    };
    int64_t i = weights.start[row * weights.segments + segment];
    const int64_t end = weights.start[row * weights.segments + segment + 1];
    for (; i + kChains <= end; i += kChains)
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c) add_block(i + c, sums[c]);
    if constexpr (kChains > 1)
      for (; i < end; ++i) add_block(i, sums[0]);
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
        for (int c = 1; c < kChains; ++c) sums[0][o][v] = Isa::add(sums[0][o][v], sums[c][o][v]);
        Isa::store(to + (o * kVectors + v) * kPanel, sums[0][o][v]);
      }
  }
};

template <class Isa, template <class, int, int> class Row, int kVectors, int kOutputs>
void block_panels(const BlockWeights& weights, const Epilogue& epilogue, const RowTiles& x, int64_t tile, int64_t rows,
                  Range panels, float* y) {
  constexpr int kPanelsAtOnce = 4;  // that share a segment
  constexpr int kPanelSums = kPanel * kVectors * kPanel;
  alignas(64) int32_t sums[kPanelsAtOnce * kPanelSums];
  alignas(64) int32_t turned[kPanel * kPanel];  // [row][output]
  const int64_t step = weights.segments > 1 ? kPanelsAtOnce : 1;
  const uint8_t* values = x.values + tile * x.bytes;
  const int64_t first = tile * kPanel * kVectors, last = first + kPanel * kVectors;
  for (int64_t begin = panels.begin; begin < panels.end; begin += step) {
    const int64_t end = std::min(begin + step, panels.end);
    for (int64_t panel = begin; panel < end; ++panel) fetch_other(epilogue, first, std::min(last, rows), panel);
    for (int64_t segment = 0; segment < weights.segments; ++segment)
      for (int64_t o = 0; o < (end - begin) * kPanel; o += kOutputs)
        Row<Isa, kVectors, kOutputs>::add(weights, values, (begin * kPanel + o) / kOutputs, segment,
                                          sums + o * kVectors * kPanel);
    for (int64_t panel = begin; panel < end; ++panel)
      for (int v = 0; v < kVectors && first + v * kPanel < rows; ++v) {
        Isa::transpose(sums + (panel - begin) * kPanelSums + v * kPanel, kVectors * kPanel, turned);
        const int64_t row = first + v * kPanel, count = std::min<int64_t>(kPanel, rows - row);
        store_panel<Isa::kFloatLanes>(turned, x.scales + row, count, epilogue, panel, y + row * epilogue.outputs);
      }
  }
}

template <class Isa, template <class, int, int> class Row, int kVectors>
void block_tile(const BlockWeights& weights, const Epilogue& epilogue, const RowTiles& x, int64_t tile, int64_t rows,
                Range panels, float* y) {
  static_assert(Isa::kSums >= 4, "one vector of a block of 4 outputs must fit");
  switch (weights.outputs) {
    case 1:
      return block_panels<Isa, Row, kVectors, 1>(weights, epilogue, x, tile, rows, panels, y);
    case 2:
      if constexpr (2 * kVectors <= Isa::kSums)
        return block_panels<Isa, Row, kVectors, 2>(weights, epilogue, x, tile, rows, panels, y);
      break;
    case 4:
      if constexpr (4 * kVectors <= Isa::kSums)
        return block_panels<Isa, Row, kVectors, 4>(weights, epilogue, x, tile, rows, panels, y);
      break;
  }
}

template <class Isa, template <class, int, int> class Row = BlockRow>
void blocks(const BlockWeights& weights, const Epilogue& epilogue, const RowTiles& x, int64_t tile, int64_t rows,
            Range panels, float* y) {
  switch (x.vectors) {
    case 1:
      return block_tile<Isa, Row, 1>(weights, epilogue, x, tile, rows, panels, y);
    case 2:
      return block_tile<Isa, Row, 2>(weights, epilogue, x, tile, rows, panels, y);
    case 4:
      return block_tile<Isa, Row, 4>(weights, epilogue, x, tile, rows, panels, y);
  }
}

// For instruction sets without a faster one of their own.
inline void transpose_plainly(const int32_t* from, int64_t stride, int32_t* to) {
  for (int column = 0; column < kPanel; ++column)
    for (int row = 0; row < kPanel; ++row) to[column * kPanel + row] = from[row * stride + column];
}

}  // namespace
}  // namespace slim

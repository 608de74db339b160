// Products with single weights for many rows: the bytes of four kept inputs are interleaved into quads on the way, 64
// rows at a time, then multiplied with the four weights of one output.
//
//   input a: row 0, row 1, ..                 rows 0-15:  a0 b0 c0 d0, a1 b1 c1 d1, ..
//   input b: row 0, row 1, ..   2 x unpack    rows 16-31: ..
//   input c: ..                 ----------->  ..
//   input d: ..
#pragma once

#include "epilogue.h"
#include "products.h"

namespace slim {
namespace {

template <class Isa, int kVectors>
void four_panels(const FourWeights& weights, const Epilogue& epilogue, const RowTiles& x, int64_t tile, int64_t rows,
                 Range panels, float* y) {
  alignas(64) int32_t sums[kPanel][kVectors * kPanel];
  alignas(64) int32_t turned[kPanel * kPanel];  // [row][output]
  const uint8_t* values = x.values + tile * x.bytes;
  const int64_t first = tile * kPanel * x.vectors;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int o = 0; o < kPanel; ++o) {
      const int64_t output = panel * kPanel + o;
      typename Isa::Sums acc[kVectors];
      for (auto& sum : acc) sum = Isa::broadcast_sum(weights.initial[output]);
      const int64_t end = weights.start[output + 1];
      for (int64_t i = weights.start[output]; i < end; ++i)
        Isa::add_four(values, &weights.inputs[4 * i], weights.weights[i], acc);
      for (int v = 0; v < kVectors; ++v) Isa::store(&sums[o][v * kPanel], acc[v]);
    }
    for (int v = 0; v < kVectors && first + v * kPanel < rows; ++v) {
      Isa::transpose(&sums[0][v * kPanel], kVectors * kPanel, turned);
      const int64_t begin = first + v * kPanel, count = std::min<int64_t>(kPanel, rows - begin);
      store_panel<Isa::kFloatLanes>(turned, x.scales + begin, count, epilogue, panel, y + begin * epilogue.outputs);
    }
  }
}

template <class Isa>
void fours(const FourWeights& weights, const Epilogue& epilogue, const RowTiles& x, int64_t tile, int64_t rows,
           Range panels, float* y) {
  const int64_t vectors = (rows + kPanel - 1) / kPanel - tile * x.vectors;
  if (vectors <= Isa::kFewVectors)
    four_panels<Isa, Isa::kFewVectors>(weights, epilogue, x, tile, rows, panels, y);
  else
    four_panels<Isa, 4>(weights, epilogue, x, tile, rows, panels, y);
}

}  // namespace
}  // namespace slim

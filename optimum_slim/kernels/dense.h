// The dense product: a few rows by a few panels of 16 outputs are held in registers while all inputs go by.
//
//            panel 0   panel 1          weights: one vector a panel and quad (16 outputs x 4 inputs)
//   row 0    acc       acc              activations: one quad of a row, broadcast to all lanes
//   row 1    acc       acc
//   ..
//
// A quad of a row takes kQuadBytes, where the instruction set wants it wider than it is.
//
// Here the weights carry the offset, so that a group's correction is one number a row, not one a weight.
#pragma once

#include "epilogue.h"
#include "products.h"

namespace slim {
namespace {

template <class Isa, int kRows, int kPanels>
struct DenseBlock {
  typename Isa::Sums sums[kRows][kPanels];

  inline void start(const int32_t* corrections, int64_t stride) {
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < kPanels; ++p) sums[r][p] = Isa::broadcast_sum(-Isa::kOffset * corrections[r * stride]);
  }

  inline void store(int32_t (&to)[kPanels][kRows * kPanel]) const {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) Isa::store(to[p] + r * kPanel, sums[r][p]);
  }

  // What was split from the values of some rows.
  inline void add_rests(const uint8_t* weights, int64_t panel_bytes, const QuantizedRows& x, int64_t row) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      for (int64_t i = x.first_rests[row + r]; i < x.first_rests[row + r + 1]; ++i) {
        const Rest& rest = x.rests[i];
        const typename Isa::Signed a = Isa::broadcast_signed(rest.values);
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p)
          sums[r][p] = Isa::dot(sums[r][p], Isa::load_unsigned(weights + p * panel_bytes + rest.quad * 64), a);
      }
  }

  inline void add(const uint8_t* weights, int64_t panel_bytes, const uint8_t* rows, int64_t stride, int64_t quads) {
    for (int64_t quad = 0; quad < quads; ++quad) {
      typename Isa::Unsigned w[kPanels];
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) w[p] = Isa::load_unsigned(weights + p * panel_bytes + quad * 64);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const typename Isa::Signed a = Isa::broadcast_signed(rows + r * stride + quad * Isa::kQuadBytes);
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) sums[r][p] = Isa::dot(sums[r][p], w[p], a);
      }
    }
  }
};

// One scale for a row's activations.
template <class Isa, int kRows, int kPanels>
struct WholeRows {
  static void run(const DensePanels& weights, const Epilogue& epilogue, const QuantizedRows& x, int64_t row,
                  int64_t panel, float* y) {
    const int64_t panel_bytes = weights.quads * 64;
    const uint8_t* w = weights.weights + (panel - weights.first_panel) * panel_bytes;
    alignas(64) int32_t buffer[kPanels][kRows * kPanel];
    DenseBlock<Isa, kRows, kPanels> block;
    block.start(x.sums + row, 1);
    block.add(w, panel_bytes, x.values + row * x.stride, x.stride, weights.quads);
    if (x.rests) block.add_rests(w, panel_bytes, x, row);
    block.store(buffer);
    for (int p = 0; p < kPanels; ++p)
      store_panel<Isa::kFloatLanes>(buffer[p], x.scales + row, kRows, epilogue, panel + p, y + row * epilogue.outputs);
  }
};

// A scale for each group: the sums of a group become floats before the next group starts.
template <class Isa, int kRows, int kPanels>
struct GroupedRows {
  static void run(const DensePanels& weights, const Epilogue& epilogue, const QuantizedRows& x, int64_t row,
                  int64_t panel, float* y) {
    constexpr int kLanes = Isa::kFloatLanes;
    const int64_t groups = epilogue.groups, panel_bytes = weights.quads * 64;
    const uint8_t* w = weights.weights + (panel - weights.first_panel) * panel_bytes;
    const uint8_t* values = x.values + row * x.stride;
    const float* scales = x.scales + row * groups;
    Float<kLanes> totals[kPanels][kRows][kPanel / kLanes] = {};
    for (int64_t g = 0; g < groups; ++g) {
      DenseBlock<Isa, kRows, kPanels> block;
      const int64_t quad = g * weights.group_quads;
      block.start(x.sums + row * groups + g, groups);
      block.add(w + quad * 64, panel_bytes, values + quad * Isa::kQuadBytes, x.stride, weights.group_quads);
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
          add_scaled<kLanes>(block.sums[r][p], scales[r * groups + g],
                             &epilogue.scale[((panel + p) * groups + g) * kPanel], totals[p][r]);
    }
    for (int p = 0; p < kPanels; ++p)
      store_panel<kLanes>(totals[p], nullptr, kRows, epilogue, panel + p, y + row * epilogue.outputs);
  }
};

template <template <class, int, int> class Block, class Isa, int kRows, int kPanels>
void dense_rows(const DensePanels& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows, int64_t panel,
                float* y) {
  int64_t row = rows.begin;
  for (; row + kRows <= rows.end; row += kRows) Block<Isa, kRows, kPanels>::run(weights, epilogue, x, row, panel, y);
  if (row == rows.end) return;
  if constexpr (kRows > 1) dense_rows<Block, Isa, kRows / 2, kPanels>(weights, epilogue, x, {row, rows.end}, panel, y);
}

template <template <class, int, int> class Block, class Isa, int kRows>
void dense_panels(const DensePanels& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows,
                  Range panels, float* y) {
  int64_t panel = panels.begin;
  for (; panel + Isa::kPanels <= panels.end; panel += Isa::kPanels)
    dense_rows<Block, Isa, kRows, Isa::kPanels>(weights, epilogue, x, rows, panel, y);
  for (; panel < panels.end; ++panel) dense_rows<Block, Isa, kRows, 1>(weights, epilogue, x, rows, panel, y);
}

// `Grouped` tells how groups are multiplied, where that is not done as without them.
template <class Isa, class Grouped = Isa>
void dense(const DensePanels& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows, Range panels,
           float* y) {
  if (epilogue.groups == 1)
    dense_panels<WholeRows, Isa, Isa::kRows>(weights, epilogue, x, rows, panels, y);
  else
    dense_panels<GroupedRows, Grouped, Grouped::kGroupedRows>(weights, epilogue, x, rows, panels, y);
}

}  // namespace
}  // namespace slim

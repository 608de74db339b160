// Packs layers of 4x1, 4x2 and 4x4 blocks: lists of quads for many rows, windows of quads for few.
#include <algorithm>
#include <array>
#include <cstring>

#include "layouts.h"

namespace slim {
namespace {

// With 64 rows a segment of activations takes 48 KB: measured, more than that gets slow.
constexpr int64_t kSegmentQuads = 192;

int32_t quad_at(const int8_t* values) {
  int32_t quad;
  std::memcpy(&quad, values, sizeof quad);
  return quad;
}

int32_t sum_of(int32_t quad) {
  std::array<int8_t, 4> values;
  std::memcpy(values.data(), &quad, sizeof quad);
  return values[0] + values[1] + values[2] + values[3];
}

// Which quads an output keeps and their weights, in ascending order.
struct OutputQuads {
  std::vector<uint16_t> columns;
  std::vector<int32_t> weights;
};

// One step of a panel: every lane that stands within reach of the slowest takes its next quad.
bool append_step(const std::array<OutputQuads, kPanel>& lanes, std::array<size_t, kPanel>& at, WindowWeights& packed) {
  constexpr int kWindow = 32;
  int first = -1;
  for (int lane = 0; lane < kPanel; ++lane)
    if (at[lane] < lanes[lane].columns.size()) {
      const int column = lanes[lane].columns[at[lane]];
      first = first < 0 ? column : std::min(first, column);
    }
  if (first < 0) return false;
  packed.windows.push_back(static_cast<uint16_t>(first));
  for (int lane = 0; lane < kPanel; ++lane) {
    const OutputQuads& quads = lanes[lane];
    const bool takes = at[lane] < quads.columns.size() && quads.columns[at[lane]] < first + kWindow;
    packed.indices.push_back(takes ? static_cast<uint8_t>(quads.columns[at[lane]] - first) : 0);
    packed.weights.push_back(takes ? quads.weights[at[lane]] : 0);
    at[lane] += takes;
  }
  return true;
}

}  // namespace

BlockWeights pack_blocks(const Layer& layer, int offset) {
  const int64_t quads = layer.block_columns();
  // Blocks of several outputs use what they load often enough to wait for a farther cache.
  const int64_t segments = layer.block_outputs > 1 ? 1 : (quads + kSegmentQuads - 1) / kSegmentQuads;
  BlockWeights packed{quads, layer.block_outputs, segments, {}, {}, {}, {}};
  const int64_t padded = round_up(layer.outputs, kPanel);
  packed.start.assign(padded / layer.block_outputs * segments + 1, 0);
  packed.initial.assign(padded, 0);
  for_each_kept_block(layer, [&](int64_t row, int64_t column, const int8_t* values) {
    ++packed.start[row * segments + column * segments / quads + 1];
    packed.columns.push_back(static_cast<uint16_t>(column));
    for (int o = 0; o < layer.block_outputs; ++o) {
      const int32_t quad = quad_at(values + 4 * o);
      packed.weights.push_back(quad);
      packed.initial[row * layer.block_outputs + o] -= offset * sum_of(quad);
    }
  });
  for (size_t i = 1; i < packed.start.size(); ++i) packed.start[i] += packed.start[i - 1];
  return packed;
}

WindowWeights pack_windows(const Layer& layer, int offset) {
  WindowWeights packed;
  const int64_t panels = round_up(layer.outputs, kPanel) / kPanel;
  packed.initial.assign(panels * kPanel, 0);
  packed.start.push_back(0);

  std::array<OutputQuads, kPanel> lanes;
  int64_t panel = 0;
  const auto finish_panel = [&] {
    std::array<size_t, kPanel> at{};
    while (append_step(lanes, at, packed)) {
    }
    packed.start.push_back(static_cast<int64_t>(packed.windows.size()));
    for (OutputQuads& quads : lanes) quads.columns.clear(), quads.weights.clear();
    ++panel;
  };
  for_each_kept_block(layer, [&](int64_t row, int64_t column, const int8_t* values) {
    while (row * layer.block_outputs / kPanel > panel) finish_panel();
    for (int o = 0; o < layer.block_outputs; ++o) {
      const int64_t n = row * layer.block_outputs + o;
      const int32_t quad = quad_at(values + 4 * o);
      packed.initial[n] -= offset * sum_of(quad);
      lanes[n % kPanel].columns.push_back(static_cast<uint16_t>(column));
      lanes[n % kPanel].weights.push_back(quad);
    }
  });
  while (panel < panels) finish_panel();
  return packed;
}

}  // namespace slim

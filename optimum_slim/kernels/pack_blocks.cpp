// Packs layers of 4x1, 4x2 and 4x4 blocks: lists of quads for many rows, windows of quads for few.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "layouts.h"

namespace slim {
namespace {

// With 64 rows a segment of activations takes 48 KB: measured, more than that gets slow.
constexpr int64_t kSegmentQuads = 192;

// Blocks that a block is tried with before it goes alone: enough for weights of any distribution.
constexpr size_t kMostWaiting = 8;

int32_t quad_at(const int8_t* values) {
  int32_t quad;
  std::memcpy(&quad, values, sizeof quad);
  return quad;
}

std::array<int8_t, 4> values_of(int32_t quad) {
  std::array<int8_t, 4> values;
  std::memcpy(values.data(), &quad, sizeof quad);
  return values;
}

int32_t sum_of(int32_t quad) {
  const auto values = values_of(quad);
  return values[0] + values[1] + values[2] + values[3];
}

// How far unsigned activations can take the sums in 16 bits that a block's neighbouring weights share, in weights.
using Reach = std::array<uint8_t, 16>;  // [output][neighbours][up, down]

Reach reach_of(const int32_t* quads, int outputs) {
  Reach reach{};
  for (int o = 0; o < outputs; ++o) {
    const auto values = values_of(quads[o]);
    for (int i = 0; i < 4; ++i) {
      uint8_t& sum = reach[4 * o + i / 2 * 2 + (values[i] < 0)];
      sum = static_cast<uint8_t>(std::min(sum + std::abs(values[i]), 255));
    }
  }
  return reach;
}

bool fits(const Reach& one, const Reach& other) {
  constexpr int kMost = 32767 / 255;
  bool fits = true;
  for (size_t i = 0; i < one.size(); ++i) fits &= one[i] + other[i] <= kMost;
  return fits;
}

// Which quads an output keeps and their weights, in ascending order.
struct OutputQuads {
  std::vector<uint16_t> columns;
  std::vector<int32_t> weights;
};

// One step of a panel: every lane that stands within reach of the slowest takes its next quad.
bool append_step(const std::array<OutputQuads, kPanel>& lanes, std::array<size_t, kPanel>& at, int window,
                 WindowWeights& packed) {
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
    const bool takes = at[lane] < quads.columns.size() && quads.columns[at[lane]] < first + window;
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
  BlockWeights packed{quads, layer.block_outputs, segments, {}, {}, {}, {}, {}};
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

void pair_blocks(BlockWeights& weights, int offset) {
  const BlockWeights from = weights;
  const int outputs = from.outputs;
  struct Waiting {
    int64_t block;
    Reach reach;
  };
  std::vector<int64_t> paired, alone;
  std::vector<Waiting> waiting;
  int64_t at = 0;
  const auto append = [&](int64_t block) {
    weights.columns[at] = from.columns[block];
    std::copy_n(&from.weights[block * outputs], outputs, &weights.weights[at * outputs]);
    ++at;
  };
  std::fill(weights.initial.begin(), weights.initial.end(), 0);
  for (size_t part = 0; part + 1 < from.start.size(); ++part) {
    for (int64_t block = from.start[part]; block < from.start[part + 1]; ++block) {
      const Reach reach = reach_of(&from.weights[block * outputs], outputs);
      const auto partner =
          std::find_if(waiting.begin(), waiting.end(), [&](const Waiting& other) { return fits(reach, other.reach); });
      if (partner != waiting.end()) {
        paired.insert(paired.end(), {partner->block, block});
        waiting.erase(partner);
      } else if (waiting.size() < kMostWaiting && fits(reach, {})) {
        waiting.push_back({block, reach});
      } else {
        alone.push_back(block);
      }
    }
    const int64_t first = static_cast<int64_t>(part) / from.segments * outputs;
    for (int64_t block : paired)
      for (int o = 0; o < outputs; ++o)
        weights.initial[first + o] -= offset * sum_of(from.weights[block * outputs + o]);
    weights.pairs.push_back(static_cast<int32_t>(paired.size() / 2));
    for (int64_t block : paired) append(block);
    for (int64_t block : alone) append(block);
    for (const Waiting& left : waiting) append(left.block);
    paired.clear();
    alone.clear();
    waiting.clear();
  }
}

WindowWeights pack_windows(const Layer& layer, const Windows& windows) {
  WindowWeights packed;
  const int64_t panels = round_up(layer.outputs, kPanel) / kPanel;
  packed.initial.assign(panels * kPanel, 0);
  packed.start.push_back(0);

  std::array<OutputQuads, kPanel> lanes;
  int64_t panel = 0;
  const auto finish_panel = [&] {
    std::array<size_t, kPanel> at{};
    while (append_step(lanes, at, windows.quads, packed)) {
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
      packed.initial[n] -= windows.offset * sum_of(quad);
      lanes[n % kPanel].columns.push_back(static_cast<uint16_t>(column));
      lanes[n % kPanel].weights.push_back(quad);
    }
  });
  while (panel < panels) finish_panel();
  return packed;
}

}  // namespace slim

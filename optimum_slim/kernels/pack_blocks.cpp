// Packs layers of 4x1, 4x2 and 4x4 blocks: lists of quads for many rows, windows of quads for few.
#include <algorithm>
#include <array>
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

// Whether unsigned activations times neighbours of each of these quads fit in 16 bits, both quads' added up.
bool products_fit(int32_t one, int32_t other) {
  constexpr int kMost = 32767 / 255;
  const auto a = values_of(one), b = values_of(other);
  for (int i = 0; i < 4; i += 2) {
    int most = 0, least = 0;
    for (int weight : {a[i], a[i + 1], b[i], b[i + 1]}) (weight > 0 ? most : least) += weight;
    if (most > kMost || least < -kMost) return false;
  }
  return true;
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
  std::fill(weights.initial.begin(), weights.initial.end(), 0);
  const auto quads_of = [&](int64_t block) { return from.weights.begin() + block * outputs; };
  const auto fit = [&](int64_t one, int64_t other) {
    return std::equal(quads_of(one), quads_of(one) + outputs, quads_of(other), products_fit);
  };
  int64_t at = 0;
  for (size_t part = 0; part + 1 < from.start.size(); ++part) {
    std::vector<int64_t> paired, waiting, alone;
    for (int64_t block = from.start[part]; block < from.start[part + 1]; ++block) {
      const auto partner =
          std::find_if(waiting.begin(), waiting.end(), [&](int64_t other) { return fit(block, other); });
      if (partner != waiting.end()) {
        paired.insert(paired.end(), {*partner, block});
        waiting.erase(partner);
        continue;
      }
      waiting.push_back(block);
      if (waiting.size() <= kMostWaiting) continue;
      alone.push_back(waiting.front());
      waiting.erase(waiting.begin());
    }
    weights.pairs.push_back(static_cast<int32_t>(paired.size() / 2));
    for (const auto& blocks : {paired, alone, waiting})
      for (int64_t block : blocks) {
        weights.columns[at] = from.columns[block];
        std::copy(quads_of(block), quads_of(block) + outputs, weights.weights.begin() + at * outputs);
        ++at;
      }
    const int64_t first = static_cast<int64_t>(part) / from.segments * outputs;
    for (int64_t block : paired)
      for (int o = 0; o < outputs; ++o) weights.initial[first + o] -= offset * sum_of(quads_of(block)[o]);
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

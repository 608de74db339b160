// Packs layers of 4x1, 4x2 and 4x4 blocks: lists of quads for many rows, windows of quads for few.
#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "layouts.h"

namespace slim {
namespace {

// The quads of a segment of activations. With 64 rows one takes 256 bytes, and all must stay in the nearest cache: of
// 32 KB beside weights and sums, while one of 48 KB may be filled (measured).
int64_t segment_quads() {
  int64_t cache = 0;
#ifdef _SC_LEVEL1_DCACHE_SIZE
  cache = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
  return cache >= 48 * 1024 ? 192 : 112;
}

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

// What a block's neighbouring weights, whose products with unsigned activations share 16 bits, are in all.
using Reach = std::array<uint16_t, 16>;  // [output][neighbours][above 0, below 0]

Reach reach_of(const int32_t* quads, int outputs) {
  Reach reach{};
  for (int o = 0; o < outputs; ++o) {
    const auto values = values_of(quads[o]);
    for (int i = 0; i < 4; ++i)
      reach[4 * o + i / 2 * 2 + (values[i] < 0)] += static_cast<uint16_t>(std::abs(values[i]));
  }
  return reach;
}

// Whether two blocks' sums fit.
bool fit(const Reach& one, const Reach& other) {
  bool all = true;
  for (size_t i = 0; i < one.size(); ++i) all &= one[i] + other[i] <= kMostOfSum;
  return all;
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
  static const int64_t most = segment_quads();
  const int64_t segments = layer.block_outputs > 1 ? 1 : (quads + most - 1) / most;
  BlockWeights packed{quads, layer.block_outputs, segments, {}, {}, {}, {}, {}, {}};
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
  int64_t at = 0;
  const auto append = [&](int64_t block) {
    weights.columns[at] = from.columns[block];
    std::copy_n(&from.weights[block * outputs], outputs, &weights.weights[at * outputs]);
    ++at;
  };
  std::fill(weights.initial.begin(), weights.initial.end(), 0);
  struct Waiting {
    int64_t block;
    Reach reach;
  };
  std::vector<Waiting> waiting;
  std::vector<int64_t> paired, single, other;
  for (size_t part = 0; part + 1 < from.start.size(); ++part) {
    for (int64_t block = from.start[part]; block < from.start[part + 1]; ++block) {
      const Reach reach = reach_of(&from.weights[block * outputs], outputs);
      if (!fit(reach, {})) {
        other.push_back(block);
        continue;
      }
      const auto partner =
          std::find_if(waiting.begin(), waiting.end(), [&](const Waiting& one) { return fit(reach, one.reach); });
      if (partner != waiting.end()) {
        paired.insert(paired.end(), {partner->block, block});
        waiting.erase(partner);
      } else if (waiting.size() < kMostWaiting) {
        waiting.push_back({block, reach});
      } else {
        single.push_back(block);
      }
    }
    for (const Waiting& left : waiting) single.push_back(left.block);
    // A row of small blocks is too short for one more loop, whose end the CPU cannot foresee.
    if (outputs == 1) {
      other.insert(other.end(), single.begin(), single.end());
      single.clear();
    }
    weights.pairs.push_back(static_cast<int32_t>(paired.size() / 2));
    weights.singles.push_back(static_cast<int32_t>(single.size()));
    for (const auto* blocks : {&paired, &single})
      for (int64_t block : *blocks) {
        int32_t* initial = &weights.initial[static_cast<int64_t>(part) / from.segments * outputs];
        for (int o = 0; o < outputs; ++o) initial[o] -= offset * sum_of(from.weights[block * outputs + o]);
        append(block);
      }
    for (int64_t block : other) append(block);
    waiting.clear();
    paired.clear();
    single.clear();
    other.clear();
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

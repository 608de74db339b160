// Packs layers of single weights: fours for many rows, byte windows for few, masks where about half are kept.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "layouts.h"

namespace slim {
namespace {

struct OutputWeights {
  std::vector<uint16_t> inputs;
  std::vector<int8_t> weights;
};

// Calls visit(output, its weights) for each output, in order.
template <class Visit>
void for_each_output(const Layer& layer, Visit&& visit) {
  OutputWeights current;
  int64_t output = 0;
  const auto finish = [&] {
    visit(output++, current);
    current.inputs.clear();
    current.weights.clear();
  };
  for_each_kept_block(layer, [&](int64_t row, int64_t column, const int8_t* value) {
    while (output < row) finish();
    current.inputs.push_back(static_cast<uint16_t>(column));
    current.weights.push_back(*value);
  });
  while (output < layer.outputs) finish();
}

int32_t correction_of(const OutputWeights& output, int offset) {
  int32_t sum = 0;
  for (int8_t weight : output.weights) sum += weight;
  return -offset * sum;
}

// Whether products of both with unsigned bytes fit in 16 bits together.
bool fit(int a, int b) { return (a < 0) != (b < 0) || std::abs(a + b) <= kMostOfSum; }

// One step of a panel: every lane takes up to four weights from the window in which the slowest lane stands.
bool append_step(const std::array<OutputWeights, kPanel>& lanes, std::array<size_t, kPanel>& at, const Windows& windows,
                 ByteWindowWeights& packed) {
  int first = -1;
  for (int lane = 0; lane < kPanel; ++lane)
    if (at[lane] < lanes[lane].inputs.size()) {
      const int input = lanes[lane].inputs[at[lane]];
      first = first < 0 ? input : std::min(first, input);
    }
  if (first < 0) return false;
  first = first / windows.byte_unit * windows.byte_unit;
  packed.windows.push_back(static_cast<uint16_t>(first));
  std::array<uint8_t, kPanel * 4> indices{};
  for (int lane = 0; lane < kPanel; ++lane) {
    const OutputWeights& output = lanes[lane];
    int before = 0;  // the weight whose sum the next one joins
    for (int i = 0; i < 4; ++i) {
      bool takes = at[lane] < output.inputs.size() && output.inputs[at[lane]] < first + windows.bytes;
      if (i % 2 == 0) before = 0;
      if (takes && windows.pairs) takes = fit(before, output.weights[at[lane]]);
      if (takes) indices[lane * 4 + i] = static_cast<uint8_t>(output.inputs[at[lane]] - first);
      packed.weights.push_back(takes ? before = output.weights[at[lane]] : 0);
      at[lane] += takes;
    }
  }
  const size_t count = windows.bytes == 16 ? indices.size() / 2 : indices.size();
  for (size_t i = count; i < indices.size(); ++i) indices[i - count] |= indices[i] << 4;
  packed.indices.insert(packed.indices.end(), indices.begin(), indices.begin() + count);
  return true;
}

// Sorted by counting.
std::vector<size_t> ascending_order(const std::vector<int8_t>& weights) {
  std::array<size_t, 257> at{};
  for (int8_t weight : weights) ++at[weight + 129];
  std::partial_sum(at.begin(), at.end(), at.begin());
  std::vector<size_t> order(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) order[at[weights[i] + 128]++] = i;
  return order;
}

// The same weights by twos whose products with unsigned activations fit in 16 bits together: one below 0 and one above,
// a large one and a small one, or one alone with a zero.
OutputWeights paired(const OutputWeights& output) {
  const std::vector<size_t> ascending = ascending_order(output.weights);
  OutputWeights result;
  const auto take = [&](size_t i, bool alone) {
    result.inputs.push_back(output.inputs[i]);
    result.weights.push_back(output.weights[i]);
    if (!alone) return;
    result.inputs.push_back(output.inputs[i]);
    result.weights.push_back(0);
  };
  auto low = ascending.begin(), high = ascending.end();
  while (low < high) {
    const int lowest = output.weights[*low], highest = output.weights[high[-1]], sum = lowest + highest;
    const bool both = high - low > 1 && fit(lowest, highest);
    if (both || sum < 0) take(*low++, !both);
    if (both || sum >= 0) take(*--high, !both);
  }
  return result;
}

}  // namespace

FourWeights pack_fours(const Layer& layer, int offset, bool pairs) {
  FourWeights packed{round_up(layer.inputs, 4) / 4, {}, {}, {}, {}};
  const int64_t padded = round_up(layer.outputs, kPanel);
  packed.start.assign(padded + 1, 0);
  packed.initial.assign(padded, 0);
  for_each_output(layer, [&](int64_t n, OutputWeights& output) {
    packed.initial[n] = correction_of(output, offset);
    if (pairs) output = paired(output);
    output.inputs.resize(round_up(output.inputs.size(), 4), 0);
    output.weights.resize(output.inputs.size(), 0);
    packed.inputs.insert(packed.inputs.end(), output.inputs.begin(), output.inputs.end());
    for (size_t i = 0; i < output.weights.size(); i += 4) {
      int32_t four;
      std::memcpy(&four, &output.weights[i], sizeof four);
      packed.weights.push_back(four);
    }
    packed.start[n + 1] = static_cast<int64_t>(packed.weights.size());
  });
  for (int64_t n = layer.outputs; n < padded; ++n) packed.start[n + 1] = packed.start[n];
  return packed;
}

ByteWindowWeights pack_byte_windows(const Layer& layer, const Windows& windows) {
  ByteWindowWeights packed;
  packed.initial.assign(round_up(layer.outputs, kPanel), 0);
  packed.start.push_back(0);
  std::array<OutputWeights, kPanel> lanes;
  for_each_output(layer, [&](int64_t n, OutputWeights& output) {
    packed.initial[n] = correction_of(output, windows.byte_offset);
    lanes[n % kPanel] = output;
    if (n % kPanel != kPanel - 1 && n != layer.outputs - 1) return;
    for (int lane = n % kPanel + 1; lane < kPanel; ++lane) lanes[lane] = {};
    std::array<size_t, kPanel> at{};
    while (append_step(lanes, at, windows, packed)) {
    }
    packed.start.push_back(static_cast<int64_t>(packed.windows.size()));
  });
  return packed;
}

MaskWeights pack_masks(const Layer& layer) {
  const DenseWeights dense = pack_dense(layer, 0);
  const int64_t panels = round_up(layer.outputs, kPanel) / kPanel;
  MaskWeights packed{dense.quads, dense.group_quads, {}, {}, {}};
  packed.masks.reserve(panels * dense.quads);
  packed.start.push_back(0);
  for (int64_t panel = 0; panel < panels; ++panel) {
    for (int64_t quad = 0; quad < dense.quads; ++quad) {
      const uint8_t* weights = &dense.weights[(panel * dense.quads + quad) * 64];
      uint64_t mask = 0;
      for (int i = 0; i < 64; ++i)
        if (weights[i]) {
          mask |= uint64_t{1} << i;
          packed.weights.push_back(static_cast<int8_t>(weights[i]));
        }
      packed.masks.push_back(mask);
    }
    packed.start.push_back(static_cast<int64_t>(packed.weights.size()));
  }
  packed.weights.resize(packed.weights.size() + 64, 0);
  return packed;
}

}  // namespace slim

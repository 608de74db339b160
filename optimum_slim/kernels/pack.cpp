// Packs a checked layer: its epilogue and its dense layout.
#include <algorithm>

#include "layouts.h"

namespace slim {

OutputScales pack_scales(const Layer& layer) {
  const int64_t padded = round_up(layer.outputs, kPanel);
  OutputScales packed;
  packed.scale.assign(padded * layer.groups, 0.0f);
  packed.bias.assign(padded, 0.0f);
  for (int64_t n = 0; n < layer.outputs; ++n)
    for (int64_t g = 0; g < layer.groups; ++g)
      packed.scale[(n / kPanel * layer.groups + g) * kPanel + n % kPanel] = layer.scale[n * layer.groups + g];
  std::copy(layer.bias.begin(), layer.bias.end(), packed.bias.begin());
  return packed;
}

DenseWeights pack_dense(const Layer& layer, int offset) {
  DenseWeights dense{round_up(layer.inputs, 4) / 4, layer.group_size() / 4, {}};
  if (layer.groups == 1) dense.group_quads = dense.quads;
  const int64_t panels = round_up(layer.outputs, kPanel) / kPanel;
  dense.weights.assign(panels * dense.quads * kPanel * 4, static_cast<uint8_t>(offset));
  for_each_kept_block(layer, [&](int64_t row, int64_t column, const int8_t* values) {
    for (int o = 0; o < layer.block_outputs; ++o)
      for (int i = 0; i < layer.block_inputs; ++i) {
        const int64_t n = row * layer.block_outputs + o, k = column * layer.block_inputs + i;
        if (n >= layer.outputs || k >= layer.inputs) continue;
        const int64_t quad = n / kPanel * dense.quads + k / 4;
        dense.weights[(quad * kPanel + n % kPanel) * 4 + k % 4] =
            static_cast<uint8_t>(values[o * layer.block_inputs + i] + offset);
      }
  });
  return dense;
}

NibbleWeights pack_nibbles(const Layer& layer) {
  const int64_t panels = round_up(layer.outputs, kPanel) / kPanel, quads = layer.inputs / 4;
  NibbleWeights packed{layer.group_size() / 4, {}, {}};
  packed.weights.assign(panels * quads * kPanel * 2, 0);
  for_each_kept_block(layer, [&](int64_t row, int64_t quad, const int8_t* values) {
    for (int o = 0; o < 4 && row * 4 + o < layer.outputs; ++o) {
      const int64_t n = row * 4 + o, pair = n / kPanel * quads / 2 + quad / 2;
      for (int i = 0; i < 4; ++i)
        packed.weights[(pair * kPanel + n % kPanel) * 4 + i] |= values[o * 4 + i] << (quad % 2 * 4);
    }
  });
  if (!layer.zero_points.empty()) {
    packed.zero_points.assign(panels * layer.groups * kPanel, 0);
    for (int64_t n = 0; n < layer.outputs; ++n)
      for (int64_t g = 0; g < layer.groups; ++g)
        packed.zero_points[(n / kPanel * layer.groups + g) * kPanel + n % kPanel] =
            layer.zero_points[n * layer.groups + g];
  }
  return packed;
}

}  // namespace slim

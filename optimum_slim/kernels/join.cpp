// Layers with the same inputs become one, so that these are quantized once.
#include <algorithm>

#include "layer.h"

namespace slim {

Layer joined(const std::vector<Layer>& parts, int64_t turn) {
  const Layer& first = parts.front();
  Layer all;
  all.inputs = first.inputs, all.pattern = first.pattern, all.groups = first.groups, all.bits = first.bits;
  all.block_inputs = first.block_inputs, all.block_outputs = first.block_outputs;
  int64_t most = 0;
  for (const Layer& part : parts) all.outputs += part.outputs, most = std::max(most, part.outputs);
  const int64_t columns = all.block_columns(), size = all.block_inputs * all.block_outputs;
  all.mask.assign((all.block_rows() * columns + 7) / 8, 0);

  std::vector<const int8_t*> values;
  for (const Layer& part : parts) values.push_back(part.values.data());
  int64_t block = 0;
  const auto take = [&](const Layer& part, const int8_t*& from, int64_t begin, int64_t end) {
    for (int64_t at = begin / all.block_outputs * columns; at < end / all.block_outputs * columns; ++at, ++block)
      if (part.kept(at)) {
        all.keep(block);
        all.values.insert(all.values.end(), from, from + size);
        from += size;
      }
    const auto append = [&](auto& to, const auto& whole, int64_t count) {
      if (!whole.empty()) to.insert(to.end(), whole.begin() + begin * count, whole.begin() + end * count);
    };
    append(all.scale, part.scale, all.groups);
    append(all.bias, part.bias, 1);
    append(all.zero_points, part.zero_points, all.groups);
  };
  for (int64_t begin = 0; begin < most; begin += turn)
    for (size_t i = 0; i < parts.size(); ++i)
      if (begin < parts[i].outputs) take(parts[i], values[i], begin, std::min(begin + turn, parts[i].outputs));
  return all;
}

}  // namespace slim

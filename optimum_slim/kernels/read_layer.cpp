// Reads a node's attributes and initializers and checks them against FORMAT.md, so that nothing behind it needs to.
#include "read_layer.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace slim {
namespace {

constexpr int64_t kMostInputs = 65536;
constexpr int64_t kMostOutputs = int64_t{1} << 24;

// Gaps: a byte between blocks, half a byte between single weights.
constexpr int kLongestOfBlocks = 255;
constexpr int kLongestOfSingles = 15;

// Inputs that share a scale, where weights stand in blocks.
constexpr int64_t kSmallestBlock = 16;
constexpr int64_t kLargestBlock = 256;

struct PatternRow {
  const char* name;
  Pattern pattern;
  Kind kind;
  int inputs;
  int outputs;
};

constexpr std::array<PatternRow, 6> kPatterns{{
    {"unstructured", Pattern::kUnstructured, Kind::kSingles, 1, 1},
    {"2:4", Pattern::kTwoOfFour, Kind::kSingles, 1, 1},
    {"4x1", Pattern::k4x1, Kind::kBlocks, 4, 1},
    {"4x2", Pattern::k4x2, Kind::kBlocks, 4, 2},
    {"4x4", Pattern::k4x4, Kind::kBlocks, 4, 4},
    {"dense", Pattern::kDense, Kind::kDense, 1, 1},
}};

const PatternRow& pattern_of(const Node& node, Kind kind) {
  const std::string text = node.text("pattern", "the name of a pattern");
  std::string names;
  for (const PatternRow& row : kPatterns) {
    if (row.kind != kind) continue;
    if (row.name == text) return row;
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  fail("attribute pattern", "'" + text + "'", "one of " + names);
}

int8_t weight_of(uint8_t stored) { return static_cast<int8_t>(stored - 128); }

void check_two_of_four(const Layer& layer) {
  for (int64_t row = 0; row < layer.outputs; ++row)
    for (int64_t first = 0; first < layer.inputs; first += 4) {
      const int64_t size = std::min<int64_t>(4, layer.inputs - first);
      int kept = 0;
      for (int64_t i = 0; i < size; ++i) kept += layer.kept(row * layer.inputs + first + i);
      if (kept > 2)
        fail("input values",
             "not 0 in " + std::to_string(kept) + " weights of output " + std::to_string(row) + " from input " +
                 std::to_string(first),
             "at most 2 of 4, for the pattern is 2:4");
    }
}

void check_values_over_the_edge(const Layer& layer) {
  for_each_kept_block(layer, [&](int64_t row, int64_t column, const int8_t* values) {
    const int64_t outputs = std::min<int64_t>(layer.block_outputs, layer.outputs - row * layer.block_outputs);
    const int64_t inputs = std::min<int64_t>(layer.block_inputs, layer.inputs - column * layer.block_inputs);
    if (outputs == layer.block_outputs && inputs == layer.block_inputs) return;
    for (int o = 0; o < layer.block_outputs; ++o)
      for (int i = 0; i < layer.block_inputs; ++i)
        if ((o >= outputs || i >= inputs) && values[o * layer.block_inputs + i])
          fail("input values", "not 0 in block row " + std::to_string(row) + ", column " + std::to_string(column),
               "0 beyond the last output and input");
  });
}

// Calls visit(i, place) for each kept block. Every gap is at least 1, but the first; the last block is at most `longest`
// away from the end, so that a small file cannot ask for a large layer.
template <class Gap, class Visit>
void for_each_place(int64_t kept, int64_t blocks, int longest, Gap&& gap, Visit&& visit) {
  int64_t place = 0;
  for (int64_t i = 0; i < kept; ++i) {
    const int step = gap(i);
    if (step == 0 && i > 0) fail("input gaps", "0 behind place " + std::to_string(place), "1 or more");
    place += step;
    if (place >= blocks)
      fail("input gaps", "beyond the end: place " + std::to_string(place), "below " + std::to_string(blocks));
    visit(i, place);
  }
  if (blocks - place > longest)
    fail("input gaps", "over at place " + std::to_string(place) + " of " + std::to_string(blocks),
         "to end at most " + std::to_string(longest) + " before the last");
}

int half_of(const uint8_t* bytes, int64_t i) { return bytes[i / 2] >> (i % 2 * 4) & 15; }

// Cuts what comes row by row into blocks of 4 x 4, filled up with zeros over the edge.
template <class Next>
void cut(Layer& layer, Next&& next) {
  layer.block_inputs = layer.block_outputs = 4;
  const int64_t columns = layer.block_columns(), blocks = layer.block_rows() * columns;
  layer.mask.assign((blocks + 7) / 8, 0);
  for (int64_t block = 0; block < blocks; ++block) layer.keep(block);
  layer.values.assign(blocks * 16, 0);
  for (int64_t n = 0; n < layer.outputs; ++n)
    for (int64_t k = 0; k < layer.inputs; ++k)
      layer.values[((n / 4 * columns + k / 4) * 4 + n % 4) * 4 + k % 4] = next();
}

void read_dense(const Node& node, Layer& layer) {
  node.bytes(1, "gaps", {0});
  const uint8_t* values = node.bytes(2, "values", {layer.outputs, layer.inputs});
  cut(layer, [&] { return weight_of(*values++); });
}

void read_blocks(const Node& node, Layer& layer) {
  const int64_t blocks = layer.block_rows() * layer.block_columns(), kept = node.first_dimension(2, "values");
  const uint8_t* gaps = node.bytes(1, "gaps", {kept});
  const uint8_t* values = node.bytes(2, "values", {kept, layer.block_outputs, layer.block_inputs});
  const auto gap = [&](int64_t i) { return gaps[i]; };
  for_each_place(kept, blocks, kLongestOfBlocks, gap, [](int64_t, int64_t) {});
  layer.mask.assign((blocks + 7) / 8, 0);
  for_each_place(kept, blocks, kLongestOfBlocks, gap, [&](int64_t, int64_t place) { layer.keep(place); });
  layer.values.resize(kept * layer.block_outputs * layer.block_inputs);
  std::transform(values, values + layer.values.size(), layer.values.begin(), weight_of);
  check_values_over_the_edge(layer);
}

// Stored input by input, wanted output by output. Fillers go.
void read_singles(const Node& node, Layer& layer) {
  const int64_t outputs = layer.outputs, inputs = layer.inputs, blocks = outputs * inputs;
  const int64_t kept = node.first_dimension(2, "values");
  const uint8_t* gaps = node.bytes(1, "gaps", {(kept + 1) / 2});
  const uint8_t* values = node.bytes(2, "values", {kept});
  if (kept % 2 && gaps[kept / 2] >> 4) fail("the last half byte of input gaps", "not 0", "0, for it is unused");
  const auto gap = [&](int64_t i) { return half_of(gaps, i); };
  std::vector<int64_t> next(outputs + 1, 0);  // where the next value of an output goes
  for_each_place(kept, blocks, kLongestOfSingles, gap, [&](int64_t i, int64_t place) {
    if (weight_of(values[i])) ++next[place % outputs + 1];
  });
  for (int64_t o = 0; o < outputs; ++o) next[o + 1] += next[o];
  layer.mask.assign((blocks + 7) / 8, 0);
  layer.values.resize(next[outputs]);
  for_each_place(kept, blocks, kLongestOfSingles, gap, [&](int64_t i, int64_t place) {
    const int8_t weight = weight_of(values[i]);
    if (!weight) return;
    layer.keep(place % outputs * inputs + place / outputs);
    layer.values[next[place % outputs]++] = weight;
  });
  if (layer.pattern == Pattern::kTwoOfFour) check_two_of_four(layer);
}

}  // namespace

Layer read_layer(const Node& node, Kind kind, bool grouped, Ending ending) {
  if (node.input_count() != (meets_other(ending) ? 6 : 5))
    fail("the number of inputs", std::to_string(node.input_count()),
         meets_other(ending) ? "6: x, gaps, values, scale, bias, other" : "5: x, gaps, values, scale, bias");

  Layer layer;
  layer.ending = ending;
  layer.inputs = node.integer("K", 1, kMostInputs);
  layer.outputs = node.integer("N", 1, kMostOutputs);
  const PatternRow& pattern = pattern_of(node, kind);
  layer.pattern = pattern.pattern;
  layer.block_inputs = node.integer("inputs", pattern.inputs, pattern.inputs);
  layer.block_outputs = node.integer("outputs", pattern.outputs, pattern.outputs);
  node.integer("bits", 8, 8);
  if (grouped) {
    const int64_t size = node.integer("group_size", 4, kMostInputs);
    if (size % 4 || layer.inputs % size)
      fail("attribute group_size", std::to_string(size),
           "a multiple of 4 that divides K, which is " + std::to_string(layer.inputs));
    layer.groups = layer.inputs / size;
  }

  layer.scale = node.floats(3, "scale", {layer.outputs, layer.groups});
  layer.bias = node.floats(4, "bias", {layer.outputs});
  switch (kind) {
    case Kind::kDense:
      read_dense(node, layer);
      break;
    case Kind::kBlocks:
      read_blocks(node, layer);
      break;
    case Kind::kSingles:
      read_singles(node, layer);
      break;
  }
  return layer;
}

Layer read_blocked_layer(const Node& node, Ending ending) {
  const size_t count = node.input_count(), least = meets_other(ending) ? 4 : 3;
  if (count != least && count != least + 1)
    fail("the number of inputs", std::to_string(count),
         meets_other(ending) ? "4 or 5: x, values, scales, other, zero_points" : "3 or 4: x, values, scales, zero_points");
  const bool asymmetric = count > least;

  Layer layer;
  layer.ending = ending;
  layer.inputs = node.integer("K", 1, kMostInputs);
  layer.outputs = node.integer("N", 1, kMostOutputs);
  layer.bits = node.integer("bits", 4, 8);
  if (layer.bits != 4 && layer.bits != 8) fail("attribute bits", std::to_string(layer.bits), "4 or 8");
  const int64_t size = node.integer("block_size", kSmallestBlock, kLargestBlock);
  if (size & (size - 1) || layer.inputs % size)
    fail("attribute block_size", std::to_string(size),
         "a power of two that divides K, which is " + std::to_string(layer.inputs));
  layer.groups = layer.inputs / size;

  const uint8_t* values = node.bytes(1, "values", {layer.outputs, layer.groups, size * layer.bits / 8});
  layer.scale = node.floats(2, "scales", {layer.outputs * layer.groups}, {layer.outputs, layer.groups});
  if (layer.bits == 8) {
    if (asymmetric)
      fail("the number of inputs", std::to_string(count),
           std::to_string(least) + " where bits is 8: the zero point is 128");
    cut(layer, [&] { return weight_of(*values++); });
    return layer;
  }
  int64_t at = 0;
  cut(layer, [&] { return static_cast<int8_t>(half_of(values, at++)); });
  if (asymmetric) {
    const int64_t stride = (layer.groups + 1) / 2;
    const uint8_t* zero_points = node.bytes(least, "zero_points", {layer.outputs, stride});
    layer.zero_points.resize(layer.outputs * layer.groups);
    for (int64_t n = 0; n < layer.outputs; ++n)
      for (int64_t g = 0; g < layer.groups; ++g)
        layer.zero_points[n * layer.groups + g] = half_of(zero_points + n * stride, g);
  }
  return layer;
}

}  // namespace slim

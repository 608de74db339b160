// Reads a node's attributes and initializers and checks them against FORMAT.md, so that nothing behind it needs to.
#include "read_layer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace slim {
namespace {

constexpr int64_t kMostInputs = 65536;
constexpr int64_t kMostOutputs = int64_t{1} << 24;

// Gaps: a byte between blocks, half a byte between single weights.
constexpr int kLongestOfBlocks = 255;
constexpr int kLongestOfSingles = 15;

// Of layers in one node.
constexpr int64_t kOutputsTogether = 16;

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

// One of a node's layers: its initializers and its outputs. Where there are several, their names end in its number.
class Part {
 public:
  Part(const Node& node, Join join, size_t number, size_t first)
      : node_(node), joined_(join != Join::kNone), number_(joined_ ? std::to_string(number) : ""), first_(first) {}

  std::string called(const char* name) const { return name + number_; }

  int64_t outputs() const {
    const std::string name = called("N");
    const int64_t unit = joined_ ? kOutputsTogether : 1, outputs = node_.integer(name.c_str(), unit, kMostOutputs);
    if (outputs % unit) fail("attribute " + name, std::to_string(outputs), "a multiple of " + std::to_string(unit));
    return outputs;
  }
  int64_t first_dimension(size_t index, const char* name) const {
    return node_.first_dimension(first_ + index, called(name).c_str());
  }
  const uint8_t* bytes(size_t index, const char* name, const Shape& shape) const {
    return node_.bytes(first_ + index, called(name).c_str(), shape);
  }
  std::vector<float> floats(size_t index, const char* name, const Shape& shape, const Shape& or_shape = {}) const {
    const float* data = node_.floats(first_ + index, called(name).c_str(), shape, or_shape);
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    return {data, data + count};
  }

 private:
  const Node& node_;
  bool joined_;
  std::string number_;
  size_t first_;
};

// The layer of a node that has several. Its N tells how many outputs it has.
Layer together(const Node& node, const std::vector<Layer>& parts, Join join) {
  const bool gated = join == Join::kGated;
  int64_t outputs = parts[0].outputs;
  if (gated && parts[1].outputs != outputs)
    fail("attribute N1", std::to_string(parts[1].outputs), std::to_string(outputs) + ", as N0");
  if (!gated)
    for (size_t i = 1; i < parts.size(); ++i) outputs += parts[i].outputs;
  node.integer("N", outputs, outputs);
  Layer layer = joined(parts, gated ? kOutputsTogether : kMostOutputs);
  layer.gated = gated;
  return layer;
}

Layer whole_of(const Node& node, std::vector<Layer> parts, Ending ending, Join join) {
  Layer layer = join == Join::kNone ? std::move(parts[0]) : together(node, parts, join);
  layer.ending = ending;
  return layer;
}

int8_t weight_of(uint8_t stored) { return static_cast<int8_t>(stored - 128); }

void check_two_of_four(const Part& part, const Layer& layer) {
  for (int64_t row = 0; row < layer.outputs; ++row)
    for (int64_t first = 0; first < layer.inputs; first += 4) {
      const int64_t size = std::min<int64_t>(4, layer.inputs - first);
      int kept = 0;
      for (int64_t i = 0; i < size; ++i) kept += layer.kept(row * layer.inputs + first + i);
      if (kept > 2)
        fail("input " + part.called("values"),
             "not 0 in " + std::to_string(kept) + " weights of output " + std::to_string(row) + " from input " +
                 std::to_string(first),
             "at most 2 of 4, for the pattern is 2:4");
    }
}

void check_values_over_the_edge(const Part& part, const Layer& layer) {
  for_each_kept_block(layer, [&](int64_t row, int64_t column, const int8_t* values) {
    const int64_t outputs = std::min<int64_t>(layer.block_outputs, layer.outputs - row * layer.block_outputs);
    const int64_t inputs = std::min<int64_t>(layer.block_inputs, layer.inputs - column * layer.block_inputs);
    if (outputs == layer.block_outputs && inputs == layer.block_inputs) return;
    for (int o = 0; o < layer.block_outputs; ++o)
      for (int i = 0; i < layer.block_inputs; ++i)
        if ((o >= outputs || i >= inputs) && values[o * layer.block_inputs + i])
          fail("input " + part.called("values"),
               "not 0 in block row " + std::to_string(row) + ", column " + std::to_string(column),
               "0 beyond the last output and input");
  });
}

// Calls visit(i, place) for each kept block. Every gap is at least 1, but the first; the last block is at most `longest`
// away from the end, so that a small file cannot ask for a large layer.
template <class Gap, class Visit>
void for_each_place(const Part& part, int64_t kept, int64_t blocks, int longest, Gap&& gap, Visit&& visit) {
  const std::string input = "input " + part.called("gaps");
  int64_t place = 0;
  for (int64_t i = 0; i < kept; ++i) {
    const int step = gap(i);
    if (step == 0 && i > 0) fail(input, "0 behind place " + std::to_string(place), "1 or more");
    place += step;
    if (place >= blocks)
      fail(input, "beyond the end: place " + std::to_string(place), "below " + std::to_string(blocks));
    visit(i, place);
  }
  if (blocks - place > longest)
    fail(input, "over at place " + std::to_string(place) + " of " + std::to_string(blocks),
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

void read_dense(const Part& part, Layer& layer) {
  part.bytes(0, "gaps", {0});
  const uint8_t* values = part.bytes(1, "values", {layer.outputs, layer.inputs});
  cut(layer, [&] { return weight_of(*values++); });
}

void read_blocks(const Part& part, Layer& layer) {
  const int64_t blocks = layer.block_rows() * layer.block_columns(), kept = part.first_dimension(1, "values");
  const uint8_t* gaps = part.bytes(0, "gaps", {kept});
  const uint8_t* values = part.bytes(1, "values", {kept, layer.block_outputs, layer.block_inputs});
  const auto gap = [&](int64_t i) { return gaps[i]; };
  for_each_place(part, kept, blocks, kLongestOfBlocks, gap, [](int64_t, int64_t) {});
  layer.mask.assign((blocks + 7) / 8, 0);
  for_each_place(part, kept, blocks, kLongestOfBlocks, gap, [&](int64_t, int64_t place) { layer.keep(place); });
  layer.values.resize(kept * layer.block_outputs * layer.block_inputs);
  std::transform(values, values + layer.values.size(), layer.values.begin(), weight_of);
  check_values_over_the_edge(part, layer);
}

// Stored input by input, wanted output by output. Fillers go.
void read_singles(const Part& part, Layer& layer) {
  const int64_t outputs = layer.outputs, inputs = layer.inputs, blocks = outputs * inputs;
  const int64_t kept = part.first_dimension(1, "values");
  const uint8_t* gaps = part.bytes(0, "gaps", {(kept + 1) / 2});
  const uint8_t* values = part.bytes(1, "values", {kept});
  if (kept % 2 && gaps[kept / 2] >> 4)
    fail("the last half byte of input " + part.called("gaps"), "not 0", "0, for it is unused");
  const auto gap = [&](int64_t i) { return half_of(gaps, i); };
  std::vector<int64_t> next(outputs + 1, 0);  // where the next value of an output goes
  for_each_place(part, kept, blocks, kLongestOfSingles, gap, [&](int64_t i, int64_t place) {
    if (weight_of(values[i])) ++next[place % outputs + 1];
  });
  for (int64_t o = 0; o < outputs; ++o) next[o + 1] += next[o];
  layer.mask.assign((blocks + 7) / 8, 0);
  layer.values.resize(next[outputs]);
  for_each_place(part, kept, blocks, kLongestOfSingles, gap, [&](int64_t i, int64_t place) {
    const int8_t weight = weight_of(values[i]);
    if (!weight) return;
    layer.keep(place % outputs * inputs + place / outputs);
    layer.values[next[place % outputs]++] = weight;
  });
  if (layer.pattern == Pattern::kTwoOfFour) check_two_of_four(part, layer);
}

}  // namespace

Layer read_layer(const Node& node, const Form& form) {
  const auto [kind, grouped, ending, join] = form;
  const size_t wanted = 1 + 4 * parts_of(join) + meets_other(ending);
  if (node.input_count() != wanted)
    fail("the number of inputs", std::to_string(node.input_count()),
         std::to_string(wanted) + ": x, gaps, values, scale, bias" +
             (join != Join::kNone ? " of each layer" : meets_other(ending) ? ", other" : ""));

  Layer layer;
  layer.inputs = node.integer("K", 1, kMostInputs);
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

  std::vector<Layer> parts(parts_of(join), layer);
  for (int i = 0; i < parts_of(join); ++i) {
    const Part part(node, join, i, 1 + 4 * i);
    Layer& one = parts[i];
    one.outputs = part.outputs();
    one.scale = part.floats(2, "scale", {one.outputs, one.groups});
    one.bias = part.floats(3, "bias", {one.outputs});
    switch (kind) {
      case Kind::kDense:
        read_dense(part, one);
        break;
      case Kind::kBlocks:
        read_blocks(part, one);
        break;
      case Kind::kSingles:
        read_singles(part, one);
        break;
    }
  }
  return whole_of(node, std::move(parts), ending, join);
}

Layer read_blocked_layer(const Node& node, Ending ending, Join join) {
  const size_t count = node.input_count(), layers = parts_of(join), least = 1 + 2 * layers + meets_other(ending);
  if (count != least && count != least + layers)
    fail("the number of inputs", std::to_string(count),
         std::to_string(least) + " or " + std::to_string(least + layers) + ": x, values, scales" +
             (join != Join::kNone ? " of each layer, zero_points of each" :
              meets_other(ending) ? ", other, zero_points" : ", zero_points"));
  const bool asymmetric = count > least;

  Layer layer;
  layer.inputs = node.integer("K", 1, kMostInputs);
  layer.bits = node.integer("bits", 4, 8);
  if (layer.bits != 4 && layer.bits != 8) fail("attribute bits", std::to_string(layer.bits), "4 or 8");
  const int64_t size = node.integer("block_size", kSmallestBlock, kLargestBlock);
  if (size & (size - 1) || layer.inputs % size)
    fail("attribute block_size", std::to_string(size),
         "a power of two that divides K, which is " + std::to_string(layer.inputs));
  layer.groups = layer.inputs / size;

  std::vector<Layer> parts(layers, layer);
  for (size_t i = 0; i < layers; ++i) {
    const Part part(node, join, i, 1 + 2 * i);
    Layer& one = parts[i];
    one.outputs = part.outputs();
    const uint8_t* values = part.bytes(0, "values", {one.outputs, one.groups, size * one.bits / 8});
    one.scale = part.floats(1, "scales", {one.outputs * one.groups}, {one.outputs, one.groups});
    int64_t at = 0;
    if (one.bits == 8)
      cut(one, [&] { return weight_of(*values++); });
    else
      cut(one, [&] { return static_cast<int8_t>(half_of(values, at++)); });
    if (!asymmetric) continue;
    if (one.bits == 8)
      fail("the number of inputs", std::to_string(count),
           std::to_string(least) + " where bits is 8: the zero point is 128");
    const int64_t stride = (one.groups + 1) / 2;
    const uint8_t* zero_points = Part(node, join, i, least + i).bytes(0, "zero_points", {one.outputs, stride});
    one.zero_points.resize(one.outputs * one.groups);
    for (int64_t n = 0; n < one.outputs; ++n)
      for (int64_t g = 0; g < one.groups; ++g) one.zero_points[n * one.groups + g] = half_of(zero_points + n * stride, g);
  }
  return whole_of(node, std::move(parts), ending, join);
}

}  // namespace slim

// Reads a node's attributes and initializers and checks them against FORMAT.md, so that nothing behind it needs to.
#include "read_layer.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace slim {
namespace {

constexpr int64_t kMostInputs = 65536;
constexpr int64_t kMostOutputs = int64_t{1} << 24;
constexpr size_t kLongestPattern = 64;

// Gaps: a byte between blocks, half a byte between single weights.
constexpr int kLongestOfBlocks = 255;
constexpr int kLongestOfSingles = 15;

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

[[noreturn]] void fail(const std::string& what, const std::string& found, const std::string& expected) {
  throw ModelError(what + " is " + found + ", expected " + expected);
}

int64_t int_attribute(ort::Api api, ort::ConstHandle info, const char* name) {
  int64_t value = 0;
  if (ort::Status status = ort::call(api, ort::kKernelInfoGetAttributeInt64, info, name, &value)) {
    ort::release(api, ort::kReleaseStatus, status);
    fail(std::string("attribute ") + name, "missing or no int", "an int");
  }
  return value;
}

int64_t int_attribute(ort::Api api, ort::ConstHandle info, const char* name, int64_t least, int64_t most) {
  const int64_t value = int_attribute(api, info, name);
  if (value < least || value > most)
    fail(std::string("attribute ") + name, std::to_string(value),
         least == most ? std::to_string(least) : std::to_string(least) + " to " + std::to_string(most));
  return value;
}

const PatternRow& pattern_attribute(ort::Api api, ort::ConstHandle info, Kind kind) {
  std::array<char, kLongestPattern> text{};
  size_t size = text.size();
  if (ort::Status status = ort::call(api, ort::kKernelInfoGetAttributeString, info, "pattern", text.data(), &size)) {
    ort::release(api, ort::kReleaseStatus, status);
    fail("attribute pattern", "missing, no string or too long", "the name of a pattern");
  }
  text.back() = '\0';
  std::string names;
  for (const PatternRow& row : kPatterns) {
    if (row.kind != kind) continue;
    if (std::strcmp(row.name, text.data()) == 0) return row;
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  fail("attribute pattern", std::string("'") + text.data() + "'", "one of " + names);
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

ort::ConstHandle initializer(ort::Api api, ort::ConstHandle info, size_t index, const std::string& what) {
  int is_constant = 0;
  ort::ConstHandle value = nullptr;
  if (ort::Status status = ort::call(api, ort::kKernelInfoGetConstantInputTensor, info, index, &is_constant, &value)) {
    ort::release(api, ort::kReleaseStatus, status);
    is_constant = 0;
  }
  if (!is_constant || !value) fail(what, "no initializer", "an initializer");
  return value;
}

int64_t first_dimension(ort::Api api, ort::ConstHandle info, size_t index, const char* name) {
  const std::string what = std::string("input ") + name;
  const std::vector<int64_t> shape = shape_of(api, initializer(api, info, index, what));
  if (shape.empty()) fail(what, "a scalar", "a dimension for the kept blocks");
  return shape[0];
}

// The data of an initializer; null where it has no elements.
const void* constant_input(ort::Api api, ort::ConstHandle info, size_t index, const char* name, int element_type,
                           const std::vector<int64_t>& shape) {
  const std::string what = std::string("input ") + name;
  const ort::ConstHandle value = initializer(api, info, index, what);
  int found_type = 0;
  const std::vector<int64_t> found = shape_of(api, value, &found_type);
  if (found_type != element_type)
    fail(what, "of element type " + std::to_string(found_type), "element type " + std::to_string(element_type));
  if (found != shape) fail("the shape of " + what, text_of(found), text_of(shape));
  void* data = nullptr;
  check(api, ort::kGetTensorMutableData, value, &data);
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  if (!data && !empty) fail(what, "without data", "data");
  return data;
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

class Initializers {
 public:
  Initializers(ort::Api api, ort::ConstHandle info) : api_(api), info_(info) {}

  const uint8_t* gaps(int64_t bytes) const { return uint8s(1, "gaps", {bytes}); }
  const uint8_t* values(const std::vector<int64_t>& shape) const { return uint8s(2, "values", shape); }
  // The first dimension of values.
  int64_t kept() const { return first_dimension(api_, info_, 2, "values"); }
  const float* floats(size_t index, const char* name, const std::vector<int64_t>& shape) const {
    return static_cast<const float*>(constant_input(api_, info_, index, name, ort::kFloat, shape));
  }

 private:
  const uint8_t* uint8s(size_t index, const char* name, const std::vector<int64_t>& shape) const {
    return static_cast<const uint8_t*>(constant_input(api_, info_, index, name, ort::kUint8, shape));
  }

  ort::Api api_;
  ort::ConstHandle info_;
};

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

// Cut into blocks of 4 x 4, over the edge filled up with zeros.
void read_dense(const Initializers& of, Layer& layer) {
  of.gaps(0);
  const uint8_t* values = of.values({layer.outputs, layer.inputs});
  layer.block_inputs = layer.block_outputs = 4;
  const int64_t columns = layer.block_columns(), blocks = layer.block_rows() * columns;
  layer.mask.assign((blocks + 7) / 8, 0);
  for (int64_t block = 0; block < blocks; ++block) layer.keep(block);
  layer.values.assign(blocks * 16, 0);
  for (int64_t n = 0; n < layer.outputs; ++n)
    for (int64_t k = 0; k < layer.inputs; ++k)
      layer.values[((n / 4 * columns + k / 4) * 4 + n % 4) * 4 + k % 4] = weight_of(*values++);
}

void read_blocks(const Initializers& of, Layer& layer) {
  const int64_t blocks = layer.block_rows() * layer.block_columns(), kept = of.kept();
  const uint8_t* gaps = of.gaps(kept);
  const uint8_t* values = of.values({kept, layer.block_outputs, layer.block_inputs});
  const auto gap = [&](int64_t i) { return gaps[i]; };
  for_each_place(kept, blocks, kLongestOfBlocks, gap, [](int64_t, int64_t) {});
  layer.mask.assign((blocks + 7) / 8, 0);
  for_each_place(kept, blocks, kLongestOfBlocks, gap, [&](int64_t, int64_t place) { layer.keep(place); });
  layer.values.resize(kept * layer.block_outputs * layer.block_inputs);
  std::transform(values, values + layer.values.size(), layer.values.begin(), weight_of);
  check_values_over_the_edge(layer);
}

// Stored input by input, wanted output by output. Fillers go.
void read_singles(const Initializers& of, Layer& layer) {
  const int64_t outputs = layer.outputs, inputs = layer.inputs, blocks = outputs * inputs, kept = of.kept();
  const uint8_t* gaps = of.gaps((kept + 1) / 2);
  const uint8_t* values = of.values({kept});
  if (kept % 2 && gaps[kept / 2] >> 4) fail("the last half byte of input gaps", "not 0", "0, for it is unused");
  const auto gap = [&](int64_t i) { return gaps[i / 2] >> (i % 2 * 4) & kLongestOfSingles; };
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

std::vector<int64_t> shape_of(ort::Api api, ort::ConstHandle value, int* element_type) {
  ort::Handle info = nullptr;
  check(api, ort::kGetTensorTypeAndShape, value, &info);
  struct Released {
    ort::Api api;
    ort::Handle info;
    ~Released() { ort::release(api, ort::kReleaseTensorTypeAndShapeInfo, info); }
  } released{api, info};
  size_t rank = 0;
  check(api, ort::kGetDimensionsCount, static_cast<ort::ConstHandle>(info), &rank);
  std::vector<int64_t> shape(rank);
  if (rank) check(api, ort::kGetDimensions, static_cast<ort::ConstHandle>(info), shape.data(), rank);
  if (element_type) check(api, ort::kGetTensorElementType, static_cast<ort::ConstHandle>(info), element_type);
  return shape;
}

Layer read_layer(ort::Api api, ort::ConstHandle info, Kind kind, bool grouped, Activation activation) {
  size_t inputs = 0;
  check(api, ort::kKernelInfoGetInputCount, info, &inputs);
  if (inputs != 5) fail("the number of inputs", std::to_string(inputs), "5: x, gaps, values, scale, bias");

  Layer layer;
  layer.activation = activation;
  layer.inputs = int_attribute(api, info, "K", 1, kMostInputs);
  layer.outputs = int_attribute(api, info, "N", 1, kMostOutputs);
  const PatternRow& pattern = pattern_attribute(api, info, kind);
  layer.pattern = pattern.pattern;
  layer.block_inputs = int_attribute(api, info, "inputs", pattern.inputs, pattern.inputs);
  layer.block_outputs = int_attribute(api, info, "outputs", pattern.outputs, pattern.outputs);
  int_attribute(api, info, "bits", 8, 8);
  if (grouped) {
    const int64_t size = int_attribute(api, info, "group_size", 4, kMostInputs);
    if (size % 4 || layer.inputs % size)
      fail("attribute group_size", std::to_string(size),
           "a multiple of 4 that divides K, which is " + std::to_string(layer.inputs));
    layer.groups = layer.inputs / size;
  }

  const Initializers of{api, info};
  layer.scale = of.floats(3, "scale", {layer.outputs, layer.groups});
  layer.bias = of.floats(4, "bias", {layer.outputs});
  switch (kind) {
    case Kind::kDense:
      read_dense(of, layer);
      break;
    case Kind::kBlocks:
      read_blocks(of, layer);
      break;
    case Kind::kSingles:
      read_singles(of, layer);
      break;
  }
  return layer;
}

}  // namespace slim

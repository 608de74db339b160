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

struct PatternRow {
  const char* name;
  Pattern pattern;
  int inputs;
  int outputs;
};

constexpr std::array<PatternRow, 6> kPatterns{{
    {"unstructured", Pattern::kUnstructured, 1, 1},
    {"2:4", Pattern::kTwoOfFour, 1, 1},
    {"4x1", Pattern::k4x1, 4, 1},
    {"4x2", Pattern::k4x2, 4, 2},
    {"4x4", Pattern::k4x4, 4, 4},
    {"dense", Pattern::kDense, 4, 4},
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

const PatternRow& pattern_attribute(ort::Api api, ort::ConstHandle info) {
  std::array<char, kLongestPattern> text{};
  size_t size = text.size();
  if (ort::Status status = ort::call(api, ort::kKernelInfoGetAttributeString, info, "pattern", text.data(), &size)) {
    ort::release(api, ort::kReleaseStatus, status);
    fail("attribute pattern", "missing, no string or too long", "the name of a pattern");
  }
  text.back() = '\0';
  for (const PatternRow& row : kPatterns)
    if (std::strcmp(row.name, text.data()) == 0) return row;
  std::string names;
  for (const PatternRow& row : kPatterns) names += (names.empty() ? "" : ", ") + std::string(row.name);
  fail("attribute pattern", std::string("'") + text.data() + "'", "one of " + names);
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

// The data of an initializer; null where it has no elements.
const void* constant_input(ort::Api api, ort::ConstHandle info, size_t index, const char* name, int element_type,
                           const std::vector<int64_t>& shape) {
  const std::string what = std::string("input ") + name;
  int is_constant = 0;
  ort::ConstHandle value = nullptr;
  if (ort::Status status = ort::call(api, ort::kKernelInfoGetConstantInputTensor, info, index, &is_constant, &value)) {
    ort::release(api, ort::kReleaseStatus, status);
    is_constant = 0;
  }
  if (!is_constant || !value) fail(what, "no initializer", "an initializer");
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

int64_t count_kept(const Layer& layer, int64_t blocks) {
  int64_t kept = 0;
  for (int64_t byte = 0; byte < (blocks + 7) / 8; ++byte) kept += __builtin_popcount(layer.mask[byte]);
  return kept;
}

void check_mask(const Layer& layer, int64_t blocks) {
  if (blocks % 8 && layer.mask[blocks / 8] >> (blocks % 8))
    fail("the last byte of input mask", std::to_string(layer.mask[blocks / 8]),
         "zeros in its " + std::to_string(8 - blocks % 8) + " unused bits");
  if (layer.pattern == Pattern::kDense && count_kept(layer, blocks) != blocks)
    fail("input mask", "not full", "every block kept, for the pattern is dense");
  if (layer.pattern != Pattern::kTwoOfFour) return;
  for (int64_t row = 0; row < layer.outputs; ++row)
    for (int64_t first = 0; first < layer.inputs; first += 4) {
      const int64_t size = std::min<int64_t>(4, layer.inputs - first);
      int kept = 0;
      for (int64_t i = 0; i < size; ++i) kept += layer.kept(row * layer.inputs + first + i);
      if (kept > 2)
        fail("input mask",
             "with " + std::to_string(kept) + " weights of output " + std::to_string(row) + " from input " +
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

Layer read_layer(ort::Api api, ort::ConstHandle info, bool grouped, Activation activation) {
  size_t inputs = 0;
  check(api, ort::kKernelInfoGetInputCount, info, &inputs);
  if (inputs != 5) fail("the number of inputs", std::to_string(inputs), "5: x, mask, values, scale, bias");

  Layer layer;
  layer.activation = activation;
  layer.inputs = int_attribute(api, info, "K", 1, kMostInputs);
  layer.outputs = int_attribute(api, info, "N", 1, kMostOutputs);
  const PatternRow& pattern = pattern_attribute(api, info);
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

  const int64_t blocks = layer.block_rows() * layer.block_columns();  // at most 2^40
  layer.mask = static_cast<const uint8_t*>(constant_input(api, info, 1, "mask", ort::kUint8, {(blocks + 7) / 8}));
  check_mask(layer, blocks);
  const int64_t values = count_kept(layer, blocks) * layer.block_inputs * layer.block_outputs;
  layer.values = static_cast<const int8_t*>(constant_input(api, info, 2, "values", ort::kInt8, {values}));
  check_values_over_the_edge(layer);
  layer.scale =
      static_cast<const float*>(constant_input(api, info, 3, "scale", ort::kFloat, {layer.outputs, layer.groups}));
  layer.bias = static_cast<const float*>(constant_input(api, info, 4, "bias", ort::kFloat, {layer.outputs}));
  return layer;
}

}  // namespace slim

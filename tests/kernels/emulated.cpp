// Runs random layers by every instruction set of the library that this CPU, real or emulated, has, and compares the
// outputs with those of plain C++ bit by bit. For CPUs that no test machine is: see test_emulated.py.
#include <cstdio>
#include <cstring>
#include <random>

#include "dispatch.h"
#include "slim_linear.h"

namespace {

using namespace slim;

struct Case {
  Pattern pattern;
  int inputs, outputs;  // of a block
};

constexpr Case kCases[] = {{Pattern::kUnstructured, 1, 1}, {Pattern::kTwoOfFour, 1, 1}, {Pattern::k4x1, 4, 1},
                           {Pattern::k4x2, 4, 2},          {Pattern::k4x4, 4, 4},       {Pattern::kDense, 4, 4}};
constexpr int kSizes[][2] = {{1, 4}, {16, 16}, {17, 5}, {48, 67}, {130, 300}, {64, 256}};  // outputs, inputs
constexpr int kRows[] = {1, 2, 5, 8, 16, 17, 33, 48, 70, 129};

std::mt19937 draw(0);

float uniform() { return std::uniform_real_distribution<float>()(draw); }

bool room_for_one_more(const Layer& layer, int64_t row, int64_t column) {
  int kept = 0;
  for (int64_t i = column / 4 * 4; i < column; ++i) kept += layer.kept(row * layer.inputs + i);
  return kept < 2;
}

Layer random_layer(const Case& one, int outputs, int inputs, int groups, float density) {
  Layer layer;
  layer.pattern = one.pattern, layer.block_inputs = one.inputs, layer.block_outputs = one.outputs;
  layer.outputs = outputs, layer.inputs = inputs, layer.groups = groups;
  const int64_t columns = layer.block_columns(), blocks = layer.block_rows() * columns;
  layer.mask.assign((blocks + 7) / 8, 0);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t row = block / columns, column = block % columns;
    if (one.pattern != Pattern::kDense && uniform() >= density) continue;
    if (one.pattern == Pattern::kTwoOfFour && !room_for_one_more(layer, row, column)) continue;
    layer.keep(block);
    for (int o = 0; o < one.outputs; ++o)
      for (int i = 0; i < one.inputs; ++i) {
        const bool inside = row * one.outputs + o < outputs && column * one.inputs + i < inputs;
        layer.values.push_back(inside ? static_cast<int8_t>(std::uniform_int_distribution<int>(-128, 127)(draw)) : 0);
      }
  }
  return layer;
}

// Of 4 bits, in groups of 16 or 32 inputs.
Layer random_nibbles(int outputs, int inputs, int groups, bool zero_points) {
  Layer layer;
  layer.bits = 4, layer.block_inputs = layer.block_outputs = 4;
  layer.outputs = outputs, layer.inputs = inputs, layer.groups = groups;
  const int64_t blocks = layer.block_rows() * layer.block_columns();
  layer.mask.assign((blocks + 7) / 8, 0);
  for (int64_t block = 0; block < blocks; ++block) layer.keep(block);
  std::uniform_int_distribution<int> of_four_bits(0, 15);
  for (int64_t i = 0; i < blocks * 16; ++i) layer.values.push_back(of_four_bits(draw));
  for (int64_t i = 0; zero_points && i < outputs * groups; ++i) layer.zero_points.push_back(of_four_bits(draw));
  return layer;
}

struct Count {
  int compared = 0, wrong = 0;
};

void compare(Layer& layer, const std::vector<const Products*>& all, Count& count) {
  std::vector<float> scale(layer.outputs * layer.groups), bias(layer.outputs);
  for (float& value : scale) value = uniform() * 1e-3f;
  for (float& value : bias) value = uniform() - 0.5f;
  layer.scale = scale.data(), layer.bias = bias.data();
  for (const int rows : kRows) {
    std::vector<float> x(rows * layer.inputs), wanted(rows * layer.outputs), found(rows * layer.outputs);
    for (float& value : x) value = uniform() - 0.5f;
    // So little work is not split: ONNX Runtime's threads are never asked for.
    const auto run = [&](const Products& products, std::vector<float>& y) {
      SlimLinear(layer, products).run(x.data(), y.data(), rows, Parallel(nullptr, nullptr));
    };
    run(*all.back(), wanted);
    for (const Products* products : all) {
      run(*products, found);
      ++count.compared;
      count.wrong += std::memcmp(wanted.data(), found.data(), wanted.size() * sizeof(float)) != 0;
    }
  }
}

}  // namespace

int main() {
  const auto all = supported_products();
  Count count;
  for (const Case& one : kCases)
    for (const float density : {0.0f, 0.1f, 0.3f, 0.6f, 1.0f})
      for (const auto& [outputs, inputs] : kSizes)
        for (const int groups : {1, 2}) {
          if (groups == 2 && inputs % 8) continue;
          Layer layer = random_layer(one, outputs, inputs, groups, density);
          compare(layer, all, count);
        }
  for (const int outputs : {1, 17, 48})
    for (const int groups : {1, 6})
      for (const int size : {16, 32, 256})
        for (const bool zero_points : {false, true}) {
          Layer layer = random_nibbles(outputs, groups * size, groups, zero_points);
          compare(layer, all, count);
        }
  for (const Products* products : all) std::printf("%s ", products->name);
  std::printf("%d compared, %d wrong\n", count.compared, count.wrong);
  return count.wrong != 0;
}

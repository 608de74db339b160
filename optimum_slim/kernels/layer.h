// One linear layer as FORMAT.md describes it, checked: what every packing routine starts from.
#pragma once

#include <cstdint>
#include <vector>

namespace slim {

// What happens to a layer's outputs last: an activation, or they meet another tensor of their shape.
enum class Ending { kNone, kRelu, kGelu, kGeluTanh, kSilu, kAdd, kMul };

constexpr bool meets_other(Ending ending) { return ending == Ending::kAdd || ending == Ending::kMul; }

// Several layers with the same inputs in one node: outputs beside each other, or those of the first, after its
// activation, times those of the second.
enum class Join { kNone, kBeside, kGated };

constexpr int parts_of(Join join) { return join == Join::kBeside ? 3 : join == Join::kGated ? 2 : 1; }

// How a file stores weights, as it stands in the operator's name.
enum class Kind { kDense, kBlocks, kSingles };

enum class Pattern { kUnstructured, kTwoOfFour, k4x1, k4x2, k4x4, kDense };

struct Layer {
  int64_t inputs = 0;   // K
  int64_t outputs = 0;  // N
  Pattern pattern = Pattern::kDense;
  int block_inputs = 1;  // 4 x 4 when dense, too
  int block_outputs = 1;
  int64_t groups = 1;  // G: each has its own scale of the activations and of the weights
  int bits = 8;        // of a weight: 4 only where the pattern is dense
  Ending ending = Ending::kNone;
  bool gated = false;  // by 16 outputs: those that end so, and those that they are multiplied by then

  // Whatever the file's order, block row by block row.
  std::vector<uint8_t> mask;   // a bit for each block
  std::vector<int8_t> values;  // [kept block][output][input]; of 4 bits 0 to 15, the zero point not taken away
  std::vector<uint8_t> zero_points;  // [outputs][groups], of weights of 4 bits; empty where all are the middle

  std::vector<float> scale;  // [outputs][groups]
  std::vector<float> bias;   // [outputs]; empty where all are 0

  int64_t block_rows() const { return (outputs + block_outputs - 1) / block_outputs; }
  int64_t block_columns() const { return (inputs + block_inputs - 1) / block_inputs; }
  int64_t group_size() const { return inputs / groups; }
  void keep(int64_t block) { mask[block >> 3] |= 1 << (block & 7); }
  bool kept(int64_t block) const { return mask[block >> 3] >> (block & 7) & 1; }
};

// Calls visit(block row, block column, values of the block) for each kept block, block row by block row.
template <class Visit>
void for_each_kept_block(const Layer& layer, Visit&& visit) {
  const int64_t rows = layer.block_rows(), columns = layer.block_columns();
  const int8_t* values = layer.values.data();
  int64_t block = 0;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column, ++block)
      if (layer.kept(block)) {
        visit(row, column, values);
        values += layer.block_outputs * layer.block_inputs;
      }
}

// The outputs of layers of one form with the same inputs as those of one layer, `turn` of each after the other, which are
// whole blocks.
Layer joined(const std::vector<Layer>& parts, int64_t turn);

}  // namespace slim

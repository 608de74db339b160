// One packed layer, ready to multiply: picks a design for the number of rows and splits the work.
#pragma once

#include <optional>

#include "parallel.h"
#include "products.h"

namespace slim {

class SlimLinear {
 public:
  SlimLinear(const Layer& layer, const Products& products);

  // y[rows][outputs] from x[rows][inputs] and, where the ending asks for it, other[rows][outputs]. Any number of threads
  // may call it at once.
  void run(const float* x, const float* other, float* y, int64_t rows, const Parallel& parallel) const;

  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }
  Ending ending() const { return ending_; }

 private:
  void run_rows(const float* x, const Epilogue& epilogue, float* y, int64_t rows, const Parallel& parallel) const;
  void run_tiles(const float* x, const Epilogue& epilogue, float* y, int64_t rows, const Parallel& parallel) const;
  void run_expanded(const float* x, const Epilogue& epilogue, float* y, int64_t rows, const Parallel& parallel) const;
  int tile_vectors(int64_t rows) const;
  int64_t most_tasks() const { return gated_ ? panels_ / 2 : panels_; }
  Range part_of_panels(int64_t index, int64_t parts) const;
  QuantizedRows quantized_rows(int64_t rows) const;

  const Products& products_;
  int64_t inputs_;
  int64_t quads_;
  int64_t panels_;
  int64_t outputs_;  // of y
  int64_t groups_;
  Ending ending_;
  bool gated_;
  OutputScales scales_;
  int64_t kept_ = 0;      // weights
  int64_t few_rows_ = 0;  // up to this many, outputs go in lanes

  // One of these for few rows, or for any number..
  std::optional<DenseWeights> dense_;
  std::optional<WindowWeights> windows_;
  std::optional<ByteWindowWeights> byte_windows_;
  std::optional<MaskWeights> masks_;
  std::optional<NibbleWeights> nibbles_;
  bool lanes_ = false;  // by the blocks
  // ..and one of these for many.
  std::optional<BlockWeights> blocks_;
  std::optional<FourWeights> fours_;
};

}  // namespace slim

// One packed layer, ready to multiply: picks a design for the number of rows and splits the work.
#pragma once

#include <optional>

#include "parallel.h"
#include "products.h"

namespace slim {

class SlimLinear {
 public:
  SlimLinear(const Layer& layer, const Products& products);

  // y[rows][outputs] from x[rows][inputs]. Any number of threads may call it at once.
  void run(const float* x, float* y, int64_t rows, const Parallel& parallel) const;

  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return epilogue_.outputs; }

 private:
  void run_rows(const float* x, float* y, int64_t rows, const Parallel& parallel) const;
  void run_tiles(const float* x, float* y, int64_t rows, const Parallel& parallel) const;
  void run_expanded(const float* x, float* y, int64_t rows, const Parallel& parallel) const;
  // Whether few rows go by the blocks too.
  bool lanes() const { return blocks_ && blocks_->outputs > 1 && products_.lanes; }
  QuantizedRows quantized_rows(int64_t rows) const;

  const Products& products_;
  int64_t inputs_;
  int64_t quads_;
  Epilogue epilogue_;
  int64_t kept_ = 0;  // weights

  // At most one of these for few rows..
  std::optional<DenseWeights> dense_;  // ..or for any number
  std::optional<WindowWeights> windows_;
  std::optional<ByteWindowWeights> byte_windows_;
  std::optional<MaskWeights> masks_;  // likewise
  // ..and one of these for many.
  std::optional<BlockWeights> blocks_;
  std::optional<FourWeights> fours_;
};

}  // namespace slim

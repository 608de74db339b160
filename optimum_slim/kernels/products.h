// What an instruction set must provide. Each fills this table in its own file, compiled with its own flags.
#pragma once

#include <limits>
#include <vector>

#include "layouts.h"

namespace slim {

// Half-open: begin to end.
struct Range {
  int64_t begin;
  int64_t end;
};

// The keys that a query sees, but for some within if it is not `solid`.
struct Sight {
  int64_t begin, end;
  bool solid;
};

// One call of SlimAttention, SlimRotaryAttention or SlimPackedAttention. Rows of query and output are [heads][size]; those
// of key and value lie as their strides say, and several heads of queries may share one of theirs. A stride of 0 repeats
// the mask, which is added to the scores, or tells which keys are seen.
struct Attention {
  int64_t batch, queries, keys, heads, kv_heads, size;
  float scale;  // of the scores
  const float *query, *key, *value;
  const float* mask;    // null where there is..
  const uint8_t* seen;  // ..this one
  float* output;
  int64_t kv_strides[3];    // of batch, head and key
  int64_t mask_strides[3];  // of batch, head and query
  const Sight* sights;      // by query, ..
  int64_t sight_strides[2];  // ..of batch and head
};

// The floats that `attend` needs for a task.
constexpr int64_t kMostLanes = 16, kMostQueries = 6;
inline int64_t attention_scratch(const Attention& a) {
  return round_up(a.keys, kMostLanes) * (a.size + 2 * kMostQueries);
}

// One call of SlimResidualNorm or SlimRmsNorm; rows have `size` values.
struct Norm {
  int64_t size;
  float epsilon;
  const float *a, *weight;
  const float *b, *bias;  // not of SlimRmsNorm
  float* output;
};

// Which design is faster when, measured unless said otherwise.
struct Limits {
  // The most rows for which outputs go in lanes; above, rows do.
  int64_t block_rows[3];   // of blocks of 1, 2 and 4 outputs
  int64_t dense_rows;      // of dense layers; if there is a most, their weights are packed in both ways
  int64_t single_rows[2];  // of single weights, where hardly any and where all are kept

  bool split_rest;  // whether rows that fill no tile wait for the tiles, then go by smaller ones or in the other way

  double singles;      // the largest share of kept weights that go as single ones; above, the dense product is faster
  int64_t dot_cycles;  // of a dot product of 64 bytes
};

constexpr int64_t kAnyRows = std::numeric_limits<int64_t>::max();

constexpr Windows kLookUp{/*offset=*/128, /*byte_offset=*/128, /*quads=*/32,
                          /*bytes=*/128,  /*byte_unit=*/64,    /*pairs=*/false};
constexpr Limits kLimits{{6, 4, 2}, kAnyRows, {40, 40}, false, 0.47, 1};

struct Products {
  const char* name;
  int offset;  // of the unsigned side of a product, see layouts.h
  int sums;    // vectors of 16 sums that fit in the registers: a tile's vectors times a block's outputs
  bool pairs;  // whether `blocks` and `fours` take weights by twos whose products fit in 16 bits together
  Windows look_up;
  Limits limits;

  // Quantizes `rows` rows of x as FORMAT.md says and adds `offset` to the values.
  void (*quantize)(const float* x, int64_t rows, int64_t inputs, int64_t groups, int offset, const QuantizedRows& to);
  // Gathers up to 16 * vectors quantized rows (with offset) into one tile; missing rows are zeros.
  void (*pack_tile)(const QuantizedRows& from, int64_t rows, int64_t quads, int vectors, uint8_t* tile);

  // Each computes outputs[rows][panels]; x points at the first row of the range, y at the first row's output 0.
  void (*dense)(const DensePanels&, const Epilogue&, const QuantizedRows&, Range rows, Range panels, float* y);
  // The sums of the rows' activations are multiplied before: by the weights' zero point with its sign changed, where
  // they have one each by -1.
  void (*nibbles)(const NibbleWeights&, const Epilogue&, const QuantizedRows&, Range rows, Range panels, float* y);
  void (*blocks)(const BlockWeights&, const Epilogue&, const RowTiles&, int64_t tile, int64_t rows, Range panels,
                 float* y);

  // Heads are counted over the batch.
  void (*attend)(const Attention&, Range heads, float* scratch);
  void (*residual_norm)(const Norm&, Range rows);
  void (*rms_norm)(const Norm&, Range rows);

  // Null where the instruction set has nothing faster than `dense`.
  void (*windows)(const WindowWeights&, const Epilogue&, const QuantizedRows&, Range rows, Range panels, float* y) = {};
  // Turns a tile of 4 vectors from [quad][64][4] to [quad][4][64], rows in the order that `fours` brings back.
  void (*spread_tile)(uint8_t* tile, int64_t quads) = {};
  void (*fours)(const FourWeights&, const Epilogue&, const RowTiles&, int64_t tile, int64_t rows, Range panels,
                float* y) = {};
  void (*byte_windows)(const ByteWindowWeights&, const Epilogue&, const QuantizedRows&, Range rows, Range panels,
                       float* y) = {};
  // For blocks of 4 outputs, from what `blocks` takes; rows have offset 0.
  void (*lanes)(const BlockWeights&, const Epilogue&, const QuantizedRows&, Range rows, Range panels, float* y) = {};
  // Makes the rows that `dense` takes where there are groups, of twice the stride; null where it takes them as they are.
  void (*widen)(const QuantizedRows& from, int64_t rows, int64_t quads, uint8_t* to) = {};
  // Splits the values that `dense` does not take where there are no groups, in place, and appends their rests; null where
  // it takes all.
  void (*split)(const QuantizedRows& rows, int64_t count, int64_t quads, std::vector<Rest>& rests, int64_t* first_rests) = {};
  void (*masked)(const MaskWeights&, const Epilogue&, const QuantizedRows&, Range rows, Range panels, float* y) = {};
  // Writes panels in the dense layout, with the offset.
  void (*expand)(const MaskWeights&, Range panels, uint8_t* to) = {};
};

}  // namespace slim

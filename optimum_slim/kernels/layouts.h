// The layouts that weights are packed into when a session is built, and activations at each call.
//
// Everything is laid out for panels of 16 outputs or tiles of 16 rows, on every CPU: one AVX-512 vector of int32, two
// of AVX2, four of NEON. A "quad" is the values of four neighbouring inputs, the unit of the dot-product instructions.
// Those multiply unsigned by signed bytes: one side carries an offset of 128, which the accumulators take back out.
// Where the instructions take signed bytes on both sides the offset is 0.
#pragma once

#include <cstdint>

#include "layer.h"
#include "memory.h"

namespace slim {

constexpr int kPanel = 16;

// Numbers of one sign that meet unsigned bytes in one 16-bit sum are at most this in all; one may be -128 alone.
constexpr int kMostOfSum = 32767 / 255;

// What stands for 0 in 4 bits where no zero point is told.
constexpr int kMiddleOfNibbles = 8;

// What turns sums into outputs, padded to whole panels.
struct OutputScales {
  AlignedVector<float> scale;  // [panel][group][16]
  AlignedVector<float> bias;   // [panel][16]
};

// How one call does it: y = ending((sum * row's scale) * scale + bias).
struct Epilogue {
  int64_t outputs;  // of y
  int64_t groups;
  Ending ending;
  bool gated;  // every other panel meets what the panel before it left in y
  const float* scale;
  const float* bias;
  const float* y;      // where the outputs start, and..
  const float* other;  // ..what they meet, laid out alike; null unless the ending has one
};

// All weights, plus the offset: [panel][quad][output in the panel][4].
struct DenseWeights {
  int64_t quads;
  int64_t group_quads;  // quads of a group; all of them where there is one group
  AlignedVector<uint8_t> weights;
};

// Some panels of such weights, wherever they lie.
struct DensePanels {
  int64_t quads;
  int64_t group_quads;
  int64_t first_panel;
  const uint8_t* weights;
};

// Weights of 4 bits with a scale for each group, two in a byte: [panel][pair of quads][output in the panel][4], the first
// quad of a pair in the low halves.
struct NibbleWeights {
  int64_t group_quads;
  AlignedVector<uint8_t> weights;
  AlignedVector<int16_t> zero_points;  // [panel][group][16]; empty where all are the middle
};

// For many rows: for each block row (1, 2 or 4 outputs) the quads of inputs it keeps, and their weights. Where a tile
// of activations is larger than the nearest cache, inputs are taken in segments: many outputs go by a segment at a
// time.
struct BlockWeights {
  int64_t quads;
  int outputs;  // of a block
  int64_t segments;
  AlignedVector<int64_t> start;     // [block row][segment], and the end; padded to whole panels by empty rows
  AlignedVector<uint16_t> columns;  // [kept block], which quad of inputs
  AlignedVector<int32_t> weights;   // [kept block][output], four signed bytes each
  AlignedVector<int32_t> initial;   // [output], the sum that takes the offset of the activations back out

  // Where products of bytes are added up in 16 bits: so many of the blocks of a block row and segment go by twos and
  // come first. The next fit alone. Only these meet activations with offset.
  AlignedVector<int32_t> pairs;    // [block row][segment]
  AlignedVector<int32_t> singles;  // [block row][segment]
};

// How activations are looked up for few rows.
struct Windows {
  int offset;       // of the activations..
  int byte_offset;  // ..and of those that single weights meet
  int quads;        // of a window..
  int bytes;        // ..of single inputs..
  int byte_unit;    // ..which starts at a multiple of this many
  bool pairs;       // whether two neighbouring single weights of a step must fit in 16 bits together
};

// For few rows: each lane walks through the kept quads of one output of a panel ("sliced ELLPACK", SELL-16). A step
// takes one quad a lane, out of a window of quads that moves on as the slowest lane allows.
struct WindowWeights {
  AlignedVector<int64_t> start;     // [panel + 1], into steps
  AlignedVector<uint16_t> windows;  // [step], the first quad of the window
  AlignedVector<uint8_t> indices;   // [step][16], within the window
  AlignedVector<int32_t> weights;   // [step][16], four signed bytes each
  AlignedVector<int32_t> initial;   // [output], as above
};

// Single weights for many rows: for each output the inputs it keeps, four at a time, filled up with zeros where that is
// needed.
struct FourWeights {
  int64_t quads;                   // of inputs
  AlignedVector<int64_t> start;    // [output + 1], into fours; padded to whole panels by empty outputs
  AlignedVector<uint16_t> inputs;  // [four][4]
  AlignedVector<int32_t> weights;  // [four], four signed bytes each
  AlignedVector<int32_t> initial;  // [output], as above
};

// Single weights for few rows: as WindowWeights, but a step takes up to four single weights a lane, out of a window of
// single inputs.
struct ByteWindowWeights {
  AlignedVector<int64_t> start;     // [panel + 1], into steps
  AlignedVector<uint16_t> windows;  // [step], the first input of the window
  AlignedVector<uint8_t> indices;   // [step][16][4], within it; of windows of 16 the last 8 outputs' in high halves
  AlignedVector<int8_t> weights;    // [step][16][4]
  AlignedVector<int32_t> initial;   // [output], as above
};

// Weights of which about half are 0: the dense layout with a bit for each weight, and the others behind one another.
struct MaskWeights {
  int64_t quads;
  int64_t group_quads;
  AlignedVector<uint64_t> masks;  // [panel][quad], a bit for each of 16 outputs x 4 inputs
  AlignedVector<int64_t> start;   // [panel + 1], into weights
  AlignedVector<int8_t> weights;  // and room for one load behind the last
};

// What a quad of a row lacks, where its values would be too large for products that are added up in 16 bits.
struct Rest {
  int32_t quad;
  int8_t values[4];
};

// Rows of quantized activations.
struct QuantizedRows {
  int64_t stride;   // of a row: K and room for a whole window behind its last quad
  uint8_t* values;  // [row][stride], plus the offset asked for
  float* scales;    // [row][group]
  int32_t* sums;    // [row][group], of the values without offset

  // Where values were split, all rests; else null.
  const Rest* rests = nullptr;
  const int64_t* first_rests = nullptr;  // [row + 1], into rests
};

// Tiles of quantized activations, rows in lanes: [quad][16 * vectors][4] each, or for FourWeights [input][64].
struct RowTiles {
  int vectors;    // 16 rows each
  int64_t bytes;  // of a tile
  uint8_t* values;
  const float* scales;  // [row]
};

OutputScales pack_scales(const Layer& layer);
DenseWeights pack_dense(const Layer& layer, int offset);
NibbleWeights pack_nibbles(const Layer& layer);
BlockWeights pack_blocks(const Layer& layer, int offset);
void pair_blocks(BlockWeights& weights, int offset);
WindowWeights pack_windows(const Layer& layer, const Windows& windows);
FourWeights pack_fours(const Layer& layer, int offset, bool pairs);
ByteWindowWeights pack_byte_windows(const Layer& layer, const Windows& windows);
MaskWeights pack_masks(const Layer& layer);

}  // namespace slim

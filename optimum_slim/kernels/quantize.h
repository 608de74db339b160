// Quantizes rows of activations as FORMAT.md says. `Plainly` has loops that compilers turn into vectors of any width.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "layouts.h"

namespace slim {
namespace {

struct Plainly {
  // The bits of |x| order like integers, with infinity and NaN above every number.
  static int32_t largest_magnitude(const float* x, int64_t count) {
    int32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      int32_t bits;
      std::memcpy(&bits, x + i, sizeof bits);
      bits &= 0x7fffffff;
      largest = bits > largest ? bits : largest;
    }
    return largest;
  }

  // Returns the sum of the values without the offset. May write up to 63 bytes behind them: a row has room for that.
  static int32_t quantize_values(const float* x, int64_t count, float inverse, int offset, uint8_t* values) {
    // Adding 1.5 * 2^23 rounds half to even and leaves the integer in the low bits.
    const float kRounder = 12582912.0f;
    int32_t total = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float shifted = x[i] * inverse + kRounder;
      int32_t q;
      std::memcpy(&q, &shifted, sizeof q);
      q -= 0x4b400000;
      total += q;
      values[i] = static_cast<uint8_t>(q + offset);
    }
    return total;
  }
};

// Returns the scale; a row with an infinity or NaN gets the scale NaN and zeros.
template <class How>
inline float quantize_group(const float* x, int64_t count, int offset, uint8_t* values, int32_t* sum) {
  const int32_t bits = How::largest_magnitude(x, count);
  *sum = 0;
  if (bits >= 0x7f800000) {
    std::memset(values, offset, count);
    return std::numeric_limits<float>::quiet_NaN();
  }
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  largest = largest < 1e-30f ? 1e-30f : largest;
  *sum = How::quantize_values(x, count, 127.0f / largest, offset, values);
  return largest / 127.0f;
}

template <class How>
void quantize_rows(const float* x, int64_t rows, int64_t inputs, int64_t groups, int offset, const QuantizedRows& to) {
  const int64_t size = inputs / groups;
  for (int64_t row = 0; row < rows; ++row) {
    uint8_t* values = to.values + row * to.stride;
    for (int64_t g = 0; g < groups; ++g)
      to.scales[row * groups + g] =
          quantize_group<How>(x + row * inputs + g * size, size, offset, values + g * size, &to.sums[row * groups + g]);
    // Whatever a window reads behind the row meets weights of 0; it is written so that it is never undefined.
    std::memset(values + inputs, offset, to.stride - inputs);
  }
}

// For instruction sets without a faster one of their own.
inline void pack_tile_plainly(const QuantizedRows& from, int64_t rows, int64_t quads, int vectors, uint8_t* tile) {
  const int64_t lanes = int64_t{kPanel} * vectors;
  for (int64_t row = 0; row < lanes; ++row)
    for (int64_t quad = 0; quad < quads; ++quad)
      if (row < rows)
        std::memcpy(tile + (quad * lanes + row) * 4, from.values + row * from.stride + quad * 4, 4);
      else
        std::memset(tile + (quad * lanes + row) * 4, 0, 4);
}

}  // namespace
}  // namespace slim

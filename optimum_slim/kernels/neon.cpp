// The path for 64-bit ARM CPUs with dot products of signed bytes.
#include <arm_neon.h>

#include "attention.h"
#include "blocks.h"
#include "dense.h"
#include "nibbles.h"
#include "norm.h"
#include "quantize.h"

namespace slim {
namespace {

struct Neon {
  static constexpr int kOffset = 0;  // both sides are signed
  static constexpr int kFloatLanes = 4;
  static constexpr int kRows = 4;
  static constexpr int kGroupedRows = 2;
  static constexpr int kPanels = 1;
  static constexpr int kQuadBytes = 4;
  static constexpr int kSums = 4;

  struct Sums {
    int32x4_t quarter[4];
  };
  struct Unsigned {
    int8x16_t quarter[4];
  };
  using Signed = int8x16_t;  // broadcast: all quarters are equal

  static Sums broadcast_sum(int32_t value) {
    const int32x4_t quarter = vdupq_n_s32(value);
    return {{quarter, quarter, quarter, quarter}};
  }
  static Unsigned load_unsigned(const void* from) {
    const auto* bytes = static_cast<const int8_t*>(from);
    return {{vld1q_s8(bytes), vld1q_s8(bytes + 16), vld1q_s8(bytes + 32), vld1q_s8(bytes + 48)}};
  }
  static Signed broadcast_signed(const void* from) {
    int32_t quad;
    std::memcpy(&quad, from, sizeof quad);
    return vreinterpretq_s8_s32(vdupq_n_s32(quad));
  }
  static Sums dot(Sums sums, Unsigned a, Signed b) {
    for (int i = 0; i < 4; ++i) sums.quarter[i] = vdotq_s32(sums.quarter[i], a.quarter[i], b);
    return sums;
  }
  static Sums load_sums(const int32_t* from) {
    return {{vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)}};
  }
  static Sums add(Sums a, Sums b) {
    for (int i = 0; i < 4; ++i) a.quarter[i] = vaddq_s32(a.quarter[i], b.quarter[i]);
    return a;
  }
  static void store(int32_t* to, Sums sums) {
    for (int i = 0; i < 4; ++i) vst1q_s32(to + 4 * i, sums.quarter[i]);
  }
  static void transpose(const int32_t* from, int64_t stride, int32_t* to) { transpose_plainly(from, stride, to); }
};

}  // namespace

extern const Products kNeon;
const Products kNeon{"neon",    Neon::kOffset,          Neon::kSums,       false,       kLookUp,
                     kLimits,   quantize_rows<Plainly>, pack_tile_plainly, dense<Neon>, nibbles<Neon>, blocks<Neon>,
                     attend<4>, residual_norm<4>, rms_norm<4>};

}  // namespace slim

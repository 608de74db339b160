// The path for CPUs without any of the instruction sets: plain C++, vectorized by the compiler as far as it can.
#include "attention.h"
#include "blocks.h"
#include "dense.h"
#include "nibbles.h"
#include "norm.h"
#include "quantize.h"

namespace slim {
namespace {

// 128 bits are what every 64-bit CPU has.
typedef int16_t Shorts __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

// Bytes 0 and 2 of each quad, and bytes 1 and 3, as 16-bit numbers.
struct Halves {
  Shorts even, odd;

  explicit Halves(Shorts bytes) : even((bytes << 8) >> 8), odd(bytes >> 8) {}
  Halves() = default;
};

struct Portable {
  static constexpr int kOffset = 0;
  static constexpr int kFloatLanes = 4;
  static constexpr int kRows = 2;
  static constexpr int kGroupedRows = 1;
  static constexpr int kPanels = 1;
  static constexpr int kQuadBytes = 4;
  static constexpr int kSums = 4;

  struct Sums {
    Ints quarter[4];
  };
  struct Unsigned {
    Halves quarter[4];
  };
  using Signed = Halves;  // broadcast: all quarters are equal

  static Sums broadcast_sum(int32_t value) {
    const Ints quarter = Ints{} + value;
    return {{quarter, quarter, quarter, quarter}};
  }
  static Unsigned load_unsigned(const void* from) {
    Shorts bytes[4];
    std::memcpy(bytes, from, sizeof bytes);
    return {{Halves(bytes[0]), Halves(bytes[1]), Halves(bytes[2]), Halves(bytes[3])}};
  }
  static Signed broadcast_signed(const void* from) {
    int32_t quad;
    std::memcpy(&quad, from, sizeof quad);
    return Halves(reinterpret_cast<Shorts>(Ints{} + quad));
  }
  static Sums dot(Sums sums, const Unsigned& a, const Signed& b) {
    for (int i = 0; i < 4; ++i) {
      // Fits in 16 bits: one side, the activations, is at least -127.
      const Shorts pairs = a.quarter[i].even * b.even + a.quarter[i].odd * b.odd;
      const Ints both = reinterpret_cast<Ints>(pairs);
      sums.quarter[i] += ((both << 16) >> 16) + (both >> 16);
    }
    return sums;
  }
  static Sums load_sums(const int32_t* from) {
    Sums sums;
    std::memcpy(&sums, from, sizeof sums);
    return sums;
  }
  static Sums add(Sums a, const Sums& b) {
    for (int i = 0; i < 4; ++i) a.quarter[i] += b.quarter[i];
    return a;
  }
  static void store(int32_t* to, const Sums& sums) { std::memcpy(to, &sums, sizeof sums); }
  static void transpose(const int32_t* from, int64_t stride, int32_t* to) { transpose_plainly(from, stride, to); }
};

}  // namespace

extern const Products kPortable;
const Products kPortable{"portable", Portable::kOffset,      Portable::kSums,   false,           kLookUp,
                         kLimits,    quantize_rows<Plainly>, pack_tile_plainly, dense<Portable>, nibbles<Portable>, blocks<Portable>,
                         attend<4>,  residual_norm<4>, rms_norm<4>};

}  // namespace slim

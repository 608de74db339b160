// The path for CPUs with AVX2. Its products of bytes saturate: where two neighbours of a row are so large that they could,
// they are split into halves, of which the second ones are multiplied apart. Few are, as a row's scale fits its largest
// value; in a group most values are near the largest, and there bytes are widened to 16 bits instead.
#include "avx2.h"

#include "attention.h"
#include "dense.h"
#include "fours.h"
#include "lanes.h"
#include "lookups.h"
#include "nibbles.h"
#include "norm.h"
#include "pairs.h"

namespace slim {
namespace {

struct WidenedDot {
  static constexpr int kRows = 4;
  static constexpr int kGroupedRows = 3;
  static constexpr int kQuadBytes = 8;

  // Bytes 0 and 2 of each quad, and bytes 1 and 3, as 16-bit numbers: the order is the same on both sides. Rows are
  // widened before, each quad to the former, then the latter.
  struct Bytes {
    __m256i even, odd;
  };

  static Bytes from_unsigned(__m256i bytes) {
    return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
  }
  static Bytes broadcast(const void* from) {
    return {broadcast_quad(from), broadcast_quad(static_cast<const uint8_t*>(from) + 4)};
  }
  static __m256i add_products(__m256i sums, __m256i a, __m256i b) {
    return add_widened(sums, _mm256_maddubs_epi16(a, b));
  }
  static __m256i dot(__m256i sums, Bytes a, Bytes b) {
    return _mm256_add_epi32(sums, _mm256_add_epi32(_mm256_madd_epi16(a.even, b.even), _mm256_madd_epi16(a.odd, b.odd)));
  }
};

struct SplitDot : PlainBytes {
  static constexpr int kRows = 4;

  static __m256i add_products(__m256i sums, __m256i a, __m256i b) { return WidenedDot::add_products(sums, a, b); }
  static __m256i dot(__m256i sums, Bytes a, Bytes b) { return add_products(sums, a, b); }
};

void split(const QuantizedRows& rows, int64_t count, int64_t quads, std::vector<Rest>& rests, int64_t* first_rests) {
  for (int64_t row = 0; row < count; ++row) {
    first_rests[row] = static_cast<int64_t>(rests.size());
    for (int64_t quad = 0; quad < quads; quad += 8) {
      // A row's stride leaves room for this load to run over its last quad.
      auto* values = reinterpret_cast<int8_t*>(rows.values + row * rows.stride + quad * 4);
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(bytes), _mm256_set1_epi8(1));
      const auto large = static_cast<uint32_t>(
          _mm256_movemask_epi8(_mm256_cmpgt_epi16(pairs, _mm256_set1_epi16(kMostOfSum))));
      if (!large) continue;
      for (int64_t i = quad; i < std::min(quad + 8, quads); ++i, values += 4) {
        if (!(large >> 4 * (i - quad) & 15)) continue;
        Rest rest{static_cast<int32_t>(i), {}};
        for (int j = 0; j < 4; ++j) {
          const int half = values[j] / 2;
          rest.values[j] = static_cast<int8_t>(values[j] - half);
          values[j] = static_cast<int8_t>(half);
        }
        rests.push_back(rest);
      }
    }
  }
  first_rests[count] = static_cast<int64_t>(rests.size());
}

void widen(const QuantizedRows& from, int64_t rows, int64_t quads, uint8_t* to) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t quad = 0; quad < quads; quad += 8) {
      // A row's stride leaves room for this load to run over its last quad.
      const int64_t at = row * from.stride + quad * 4;
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from.values + at));
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), odd = _mm256_srai_epi16(bytes, 8);
      const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
      auto* widened = reinterpret_cast<__m256i*>(to + 2 * at);
      _mm256_storeu_si256(widened, _mm256_permute2x128_si256(low, high, 0x20));
      _mm256_storeu_si256(widened + 1, _mm256_permute2x128_si256(low, high, 0x31));
    }
}

using Avx2 = Ymm<WidenedDot>;
using Avx2Split = Ymm<SplitDot>;

// Weights of 4 bits leave room for the products of several quads in 16 bits.
struct ShortDot {
  static constexpr int kRows = 4;
  using Short = Avx2::Sums;
  using Weights = Avx2::Sums;
  static Weights load(const uint8_t* weights) {
    const auto* halves = reinterpret_cast<const __m256i*>(weights);
    __m256i low = _mm256_load_si256(halves), high = _mm256_load_si256(halves + 1);
    asm("" : "+x"(low), "+x"(high));  // else GCC loads them once more for each row
    return {{low, high}};
  }
  static Short first(const Weights& weights, const uint8_t* quad) {
    const __m256i a = broadcast_quad(quad);
    return {{_mm256_maddubs_epi16(weights.half[0], a), _mm256_maddubs_epi16(weights.half[1], a)}};
  }
  static Short add(Short sums, const Weights& weights, const uint8_t* quad) {
    const __m256i a = broadcast_quad(quad);
    __m256i low = _mm256_maddubs_epi16(weights.half[0], a), high = _mm256_maddubs_epi16(weights.half[1], a);
    // Both products come before both sums: in turns, they would get into each other's way.
    asm("" : "+x"(low), "+x"(high));
    low = _mm256_add_epi16(sums.half[0], low), high = _mm256_add_epi16(sums.half[1], high);
    asm("" : "+x"(low), "+x"(high));  // else GCC adds in another order, for which it lacks registers
    return {{low, high}};
  }
  static Avx2::Sums widened(Avx2::Sums sums, Short more) {
    return {{add_widened(sums.half[0], more.half[0]), add_widened(sums.half[1], more.half[1])}};
  }
};

constexpr Limits kAvx2Limits{{5, 3, 6}, 12, {12, 52}, true, 0.6, 2};

}  // namespace

extern const Products kAvx2;
const Products kAvx2{"avx2",
                     Avx2::kOffset,
                     Avx2::kSums,
                     true,
                     kYmmLookUp,
                     kAvx2Limits,
                     quantize_rows<ByYmm>,
                     Avx2::pack_tile,
                     dense<Avx2Split, Avx2>,
                     nibbles<Avx2, ShortDot>,
                     paired_blocks<Avx2>,
                     attend<8>,
                     residual_norm<8>,
                     rms_norm<8>,
                     look_up<Avx2, QuadWindow>,
                     Avx2::spread_tile,
                     fours<Avx2>,
                     look_up<Avx2, ByteWindow>,
                     lanes<Avx2>,
                     widen,
                     split};

}  // namespace slim

// The path for CPUs with AVX2: bytes are widened to 16 bits, for its products of bytes saturate.
#include "avx2.h"

#include "attention.h"
#include "dense.h"
#include "norm.h"
#include "pairs.h"
#include "quantize.h"

namespace slim {
namespace {

struct WidenedDot {
  static constexpr int kRows = 4;
  static constexpr int kGroupedRows = 2;

  // Bytes 0 and 2 of each quad, and bytes 1 and 3, as 16-bit numbers: the order is the same on both sides.
  struct Bytes {
    __m256i even, odd;
  };

  static Bytes from_unsigned(__m256i bytes) {
    return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
  }
  static Bytes from_signed(__m256i bytes) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
  }
  static __m256i dot(__m256i sums, Bytes a, Bytes b) {
    return _mm256_add_epi32(sums, _mm256_add_epi32(_mm256_madd_epi16(a.even, b.even), _mm256_madd_epi16(a.odd, b.odd)));
  }
};

using Avx2 = Ymm<WidenedDot>;

}  // namespace

extern const Products kAvx2;
const Products kAvx2{"avx2",          Avx2::kOffset, Avx2::kSums, true, quantize_rows<Plainly>,
                     Avx2::pack_tile, dense<Avx2>,   blocks<Avx2, PairedRow>,   attend<8>, residual_norm<8>};

}  // namespace slim

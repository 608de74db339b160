// The path for CPUs with dot products of bytes in 256 bits, but no AVX-512.
#include "avx2.h"
#include "attention.h"
#include "blocks.h"
#include "dense.h"
#include "fours.h"
#include "lanes.h"
#include "lookups.h"
#include "nibbles.h"
#include "norm.h"

namespace slim {
namespace {

struct VnniDot : PlainBytes {
  static constexpr int kRows = 6;

  static __m256i add_products(__m256i sums, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(sums, a, b); }
  static __m256i dot(__m256i sums, Bytes a, Bytes b) { return _mm256_dpbusd_avx_epi32(sums, a, b); }
};

using AvxVnni = Ymm<VnniDot>;

// Counted in instructions, where others are measured: a dense product needs one for 32 weights, the others three.
constexpr Limits kVnniLimits{{5, 4, 8}, kAnyRows, {12, 52}, true, 0.35, 1};

}  // namespace

extern const Products kAvxVnni;
const Products kAvxVnni{"avxvnni",
                        AvxVnni::kOffset,
                        AvxVnni::kSums,
                        false,
                        kYmmLookUp,
                        kVnniLimits,
                        quantize_rows<ByYmm>,
                        AvxVnni::pack_tile,
                        dense<AvxVnni>,
                        nibbles<AvxVnni>,
                        blocks<AvxVnni>,
                        attend<8>,
                        residual_norm<8>,
                        rms_norm<8>,
                        look_up<AvxVnni, QuadWindow>,
                        AvxVnni::spread_tile,
                        fours<AvxVnni>,
                        look_up<AvxVnni, ByteWindow>,
                        lanes<AvxVnni>};

}  // namespace slim

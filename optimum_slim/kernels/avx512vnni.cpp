// The path for CPUs with AVX-512 and its dot products (VNNI).
#include "avx512.h"
#include "attention.h"
#include "blocks.h"
#include "dense.h"
#include "fours.h"
#include "nibbles.h"
#include "norm.h"
#include "quantize.h"
#include "windows.h"

namespace slim {

extern const Products kAvx512Vnni;
const Products kAvx512Vnni{"avx512vnni",
                           Avx512Vnni::kOffset,
                           Avx512Vnni::kSums,
                           false,
                           kLookUp,
                           kLimits,
                           quantize_rows<Avx512Vnni>,
                           Avx512Vnni::pack_tile,
                           dense<Avx512Vnni>,
                           nibbles<Avx512Vnni>,
                           blocks<Avx512Vnni>,
                           attend<16>,
                           residual_norm<16>,
                           rms_norm<16>,
                           windows<Avx512Vnni>,
                           Avx512Vnni::spread_tile,
                           fours<Avx512Vnni>};

}  // namespace slim

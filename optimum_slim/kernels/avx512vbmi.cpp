// What AVX-512's byte permutations (VBMI) and byte expansion (VBMI2) add to the path of AVX-512 with dot products:
// products with single weights for few rows, and with weights of which about half are kept.
#include "avx512.h"
#include "epilogue.h"
#include "products.h"
#include "windows.h"

namespace slim {
namespace {

template <int kRows>
inline void byte_window_rows(const ByteWindowWeights& weights, const Epilogue& epilogue, const QuantizedRows& x,
                             int64_t row, Range panels, float* y) {
  const auto add = [&](int64_t step, const uint8_t* window, __m512i(&sums)[kRows]) {
    const __m512i indices = _mm512_load_si512(&weights.indices[step * 64]);
    const __m512i w = _mm512_load_si512(&weights.weights[step * 64]);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i low = _mm512_load_si512(window + r * x.stride);
      const __m512i high = _mm512_load_si512(window + r * x.stride + 64);
      sums[r] = Avx512Vnni::dot(sums[r], _mm512_permutex2var_epi8(low, indices, high), w);
    }
  };
  step_by_step<Avx512Vnni, kRows, 1>(weights, epilogue, x, row, panels, y, add);
}

void byte_windows(const ByteWindowWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows,
                  Range panels, float* y) {
  int64_t row = rows.begin;
  for (; row + 8 <= rows.end; row += 8) byte_window_rows<8>(weights, epilogue, x, row, panels, y);
  for (; row + 4 <= rows.end; row += 4) byte_window_rows<4>(weights, epilogue, x, row, panels, y);
  for (; row + 2 <= rows.end; row += 2) byte_window_rows<2>(weights, epilogue, x, row, panels, y);
  for (; row < rows.end; ++row) byte_window_rows<1>(weights, epilogue, x, row, panels, y);
}

// Reads the weights of a panel quad by quad, in the dense layout, plus the offset.
struct MaskReader {
  const uint64_t* masks;
  const int8_t* weights;

  __m512i next() {
    const uint64_t mask = *masks++;
    __m512i packed = _mm512_loadu_si512(weights);
    asm("" : "+v"(packed));  // expanding straight from memory is microcode on Zen 4, several times slower
    const __m512i w = _mm512_maskz_expand_epi8(mask, packed);
    weights += __builtin_popcountll(mask);
    return _mm512_xor_si512(w, _mm512_set1_epi8(-128));  // adds 128
  }
};

// Few rows: a panel's weights are expanded in registers. One row has two sums, for one would wait for itself.
template <int kRows>
inline void masked_rows(const MaskWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, int64_t row,
                        Range panels, float* y) {
  constexpr int kUnroll = kRows == 1 ? 2 : 1;
  constexpr int kLanes = Avx512Vnni::kFloatLanes;
  const int64_t groups = epilogue.groups;
  const float* scales = x.scales + row * groups;
  const int32_t* corrections = x.sums + row * groups;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    MaskReader reader{&weights.masks[panel * weights.quads], &weights.weights[weights.start[panel]]};
    alignas(64) int32_t buffer[kRows * kPanel];
    Float<kLanes> totals[kRows][kPanel / kLanes] = {};
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t* values = x.values + row * x.stride + g * weights.group_quads * 4;
      __m512i sums[kRows][kUnroll];
      for (int r = 0; r < kRows; ++r) {
        sums[r][0] = _mm512_set1_epi32(-Avx512Vnni::kOffset * corrections[r * groups + g]);
        if (kUnroll == 2) sums[r][kUnroll - 1] = _mm512_setzero_si512();
      }
      const auto add_quad = [&](int64_t quad, int u) {
        const __m512i w = reader.next();
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
          sums[r][u] = Avx512Vnni::dot(sums[r][u], w, Avx512Vnni::broadcast_signed(values + r * x.stride + quad * 4));
      };
      int64_t quad = 0;
      for (; quad + kUnroll <= weights.group_quads; quad += kUnroll)
#pragma GCC unroll 2
        for (int u = 0; u < kUnroll; ++u) add_quad(quad + u, u);
      for (; quad < weights.group_quads; ++quad) add_quad(quad, 0);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        if (kUnroll == 2) sums[r][0] = _mm512_add_epi32(sums[r][0], sums[r][kUnroll - 1]);
        _mm512_store_si512(buffer + r * kPanel, sums[r][0]);
        if (groups > 1)
          add_scaled<kLanes>(sums[r][0], scales[r * groups + g], &epilogue.scale[(panel * groups + g) * kPanel],
                             totals[r]);
      }
    }
    if (groups > 1)
      store_panel<kLanes>(totals, nullptr, kRows, epilogue, panel, y + row * epilogue.outputs);
    else
      store_panel<kLanes>(buffer, scales, kRows, epilogue, panel, y + row * epilogue.outputs);
  }
}

void masked(const MaskWeights& weights, const Epilogue& epilogue, const QuantizedRows& x, Range rows, Range panels,
            float* y) {
  int64_t row = rows.begin;
  for (; row + 8 <= rows.end; row += 8) masked_rows<8>(weights, epilogue, x, row, panels, y);
  for (; row + 4 <= rows.end; row += 4) masked_rows<4>(weights, epilogue, x, row, panels, y);
  for (; row + 2 <= rows.end; row += 2) masked_rows<2>(weights, epilogue, x, row, panels, y);
  for (; row < rows.end; ++row) masked_rows<1>(weights, epilogue, x, row, panels, y);
}

void expand(const MaskWeights& weights, Range panels, uint8_t* to) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    MaskReader reader{&weights.masks[panel * weights.quads], &weights.weights[weights.start[panel]]};
    for (int64_t quad = 0; quad < weights.quads; ++quad, to += 64) _mm512_store_si512(to, reader.next());
  }
}

}  // namespace

void add_vbmi(Products& products);
void add_vbmi(Products& products) {
  products.byte_windows = byte_windows;
  products.masked = masked;
  products.expand = expand;
}

}  // namespace slim

// What this CPU can do at most, on one core: products of bytes a second, from registers, and bytes read a second, from
// a buffer of the size given (in bytes). Prints JSON. `kernels.py` compiles it with -march=native.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512VNNI__)
using Vector = __m512i;
constexpr const char* kHow = "avx512vnni";
constexpr int kDots = 1;
Vector dot(Vector sums, Vector a, Vector b) { return _mm512_dpbusd_epi32(sums, a, b); }
#elif defined(__AVXVNNI__)
using Vector = __m256i;
constexpr const char* kHow = "avxvnni";
constexpr int kDots = 1;
Vector dot(Vector sums, Vector a, Vector b) { return _mm256_dpbusd_avx_epi32(sums, a, b); }
#elif defined(__AVX2__)
using Vector = __m256i;
constexpr const char* kHow = "avx2";
constexpr int kDots = 2;  // small products may be added up by twos before they are widened
Vector dot(Vector sums, Vector a, Vector b) {
  const Vector products = _mm256_add_epi16(_mm256_maddubs_epi16(a, b), _mm256_maddubs_epi16(b, a));
  return _mm256_add_epi32(sums, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}
#elif defined(__ARM_FEATURE_DOTPROD)
using Vector = int32x4_t;
constexpr const char* kHow = "neon";
constexpr int kDots = 1;
Vector dot(Vector sums, Vector a, Vector b) {
  return vdotq_s32(sums, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
#else
#error "no products of bytes are known for this CPU"
#endif

// Keeps a value in its register, unknown to the compiler.
void opaque(Vector& value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value));
#else
  asm volatile("" : "+w"(value));
#endif
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of several tries, for whatever else runs only ever slows one down.
template <class Work>
double fastest(Work&& work) {
  double best = 1e9;
  for (int i = 0; i < 20; ++i) {
    const double begun = seconds();
    work();
    const double took = seconds() - begun;
    best = took < best ? took : best;
  }
  return best;
}

}  // namespace

int main(int, char** arguments) {
  constexpr int kChains = 12, kTurns = 200000;
  Vector sums[kChains] = {}, a[2] = {}, b = {};
  opaque(b);
  const double dots = fastest([&] {
    for (int turn = 0; turn < kTurns; ++turn)
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) {
        opaque(a[c % 2]);
        sums[c] = dot(sums[c], a[c % 2], b);
        opaque(sums[c]);
      }
  });

  const size_t vectors = std::strtoull(arguments[1], nullptr, 10) / sizeof(Vector);
  std::vector<Vector> buffer(vectors);
  Vector seen[8] = {};
  constexpr int kPasses = 8;
  const double reading = fastest([&] {
    for (int pass = 0; pass < kPasses; ++pass)
      for (size_t i = 0; i + 8 <= vectors; i += 8)
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
          seen[c] ^= buffer[i + c];
          opaque(seen[c]);
        }
  });
  std::printf("{\"how\": \"%s\", \"gop_s\": %.1f, \"gb_s\": %.2f}\n", kHow,
              2e-9 * kDots * kTurns * kChains * sizeof(Vector) / dots, 1e-9 * kPasses * vectors * sizeof(Vector) / reading);
}

// The activation functions, on vectors of floats of any width.
//
// They are written with the compilers' vector types, so that a lane's result does not depend on its neighbours. This header
// is compiled once for each instruction set: everything sits in an unnamed namespace, lest the linker merge copies that
// use other instructions. Multiplications and additions are fused where the instruction set can: only here, as the
// numbers of linears must be the same everywhere.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

#include "layer.h"

namespace slim {
namespace {

template <int kLanes>
struct FloatLanes {
  typedef float Float __attribute__((vector_size(4 * kLanes)));
  typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
  typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
};

template <int kLanes>
using Float = typename FloatLanes<kLanes>::Float;
template <int kLanes>
using Int = typename FloatLanes<kLanes>::Int;

template <int kLanes>
inline Float<kLanes> load(const float* from) {
  Float<kLanes> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class F>
inline F fused(F a, F b, F c) {
  return a * b + c;
}
#if defined(__AVX512F__)
inline Float<16> fused(Float<16> a, Float<16> b, Float<16> c) {
  return (Float<16>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#elif defined(__FMA__)
inline Float<8> fused(Float<8> a, Float<8> b, Float<8> c) {
  return (Float<8>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#endif

// x between two numbers; NaN becomes one of them. GCC would compare and then choose.
template <class F>
inline F clamped(F x, float low, float high) {
  x = x < high ? x : F{} + high;
  return x > low ? x : F{} + low;
}
#if defined(__AVX512F__)
inline Float<16> clamped(Float<16> x, float low, float high) {
  return (Float<16>)_mm512_max_ps(_mm512_min_ps((__m512)x, _mm512_set1_ps(high)), _mm512_set1_ps(low));
}
#elif defined(__FMA__)
inline Float<8> clamped(Float<8> x, float low, float high) {
  return (Float<8>)_mm256_max_ps(_mm256_min_ps((__m256)x, _mm256_set1_ps(high)), _mm256_set1_ps(low));
}
#endif

// To one unit in the last place or two: a division takes as long as ten multiplications.
template <class F>
inline F reciprocal(F x) {
  return 1.0f / x;
}
#if defined(__AVX512F__)
inline Float<16> reciprocal(Float<16> x) {
  const Float<16> guess = (Float<16>)_mm512_rcp14_ps((__m512)x);
  return guess * fused(-x, guess, Float<16>{} + 2.0f);
}
#endif

// Polynomial by Horner's rule, highest coefficient first.
template <class F, class... Rest>
inline F polynomial(F x, F value, float coefficient, Rest... rest) {
  if constexpr (sizeof...(rest) == 0)
    return fused(value, x, F{} + coefficient);
  else
    return polynomial(x, fused(value, x, F{} + coefficient), rest...);
}

// e^x to 1e-7 relative; arguments are clamped to where the result is a normal float.
template <int kLanes>
inline Float<kLanes> exponential(Float<kLanes> x) {
  using F = Float<kLanes>;
  x = clamped(x, -87.0f, 88.0f);
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  const F rounder = F{} + 12582912.0f;
  const F shifted = fused(x, F{} + 1.44269504f, rounder);
  const F n = shifted - rounder;
  // ln 2 in two parts: the first product is exact.
  const F r = fused(n, F{} - 1.42860677e-6f, fused(n, F{} - 0.693145752f, x));
  const F p = polynomial(r, F{} + 1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                         1.6666665459e-1f, 5.0000001201e-1f);
  const F y = fused(p * r, r, r) + 1.0f;
  typename FloatLanes<kLanes>::Bits bits, exponent;
  std::memcpy(&bits, &y, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;
  F result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// erf(x / sqrt(2)) to 4e-7: a rational function that is best in the relative maximum norm up to where erf is 1 but for 4e-8.
template <int kLanes>
inline Float<kLanes> error_function(Float<kLanes> x) {
  using F = Float<kLanes>;
  constexpr float kEnd = 3.9f;
  const F z = clamped(x * 0.707106781f, -kEnd, kEnd);
  const F square = z * z;
  const F p = polynomial(square, F{} + 2.014859698e-08f, -1.963099783e-06f, 1.405743135e-04f, 3.631290672e-03f,
                         5.034183024e-02f, 1.981592072e-01f, 1.128379113e+00f);
  const F q = polynomial(square, F{} + 9.403366379e-04f, 1.420586909e-02f, 1.142713230e-01f, 5.089457763e-01f, 1.0f);
  return z * p * reciprocal(q);
}

template <int kLanes, Ending kActivation>
inline Float<kLanes> activate(Float<kLanes> x) {
  using F = Float<kLanes>;
  F y = x;
  if constexpr (kActivation == Ending::kRelu) {
    y = x < 0.0f ? F{} : x;
  } else if constexpr (kActivation == Ending::kGelu) {
    const F half = 0.5f * x;
    y = fused(half, error_function<kLanes>(x), half);
  } else if constexpr (kActivation == Ending::kGeluTanh) {
    // x times the logistic function of 2 sqrt(2 / pi) (x + 0.044715 x^3), which is what 0.5 x (1 + tanh ..) comes to
    y = x * reciprocal(1.0f + exponential<kLanes>(x * (-1.59576912f - 0.0713548163f * x * x)));
  } else if constexpr (kActivation == Ending::kSilu) {
    y = x * reciprocal(1.0f + exponential<kLanes>(-x));
  }
  return x == x ? y : x;  // NaN stays NaN: the clamps inside would hide it
}

}  // namespace
}  // namespace slim

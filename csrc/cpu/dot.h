// Inner products of rows with rows in one order of additions, whatever is computed beside them.
//
// Both sides are read in groups of 64 bytes of the wider type. Lane j of a group adds its products in the
// order of the groups; at the end the lanes of one sum are added as a tree: j and j + n / 2, halves of those,
// and so on. Weights lie as PyTorch keeps them, (outputs, inputs), so that nothing is packed and a single row
// runs at the speed of memory. With FMA the bits are the same for every instruction set.
#pragma once
#include <type_traits>

#include "vector_math.h"

namespace fastgen::FASTGEN_ISA {

template <class T>
using Vec = std::conditional_t<sizeof(T) == 4, F32, F64>;

constexpr int kParts = 64 / kBytes;   // vectors of a group
constexpr int kBlocks = kBytes / 16;  // blocks of 128 bits of a vector
template <class T>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int kGroup = 64 / static_cast<int>(sizeof(T));

struct BFloat16 {
  uint16_t bits;
};

// The first `count` lanes of a vector, 0 < count <= kLanes; the rest is zero and not read.
FASTGEN_INLINE F32 load_some(const float* p, int64_t count) {
#if defined(__AVX512F__)
  return (F32)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif defined(__AVX2__)
  const I32 lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return (F32)_mm256_maskload_ps(p, (__m256i)(lane < static_cast<int32_t>(count)));
#else
  F32 v{};
  memcpy(&v, p, count * sizeof *p);
  return v;
#endif
}

FASTGEN_INLINE F64 load_some(const double* p, int64_t count) {
#if defined(__AVX512F__)
  return (F64)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p);
#elif defined(__AVX2__)
  const I64 lane = {0, 1, 2, 3};
  return (F64)_mm256_maskload_pd(p, (__m256i)(lane < count));
#else
  F64 v{};
  memcpy(&v, p, count * sizeof *p);
  return v;
#endif
}

// A bfloat16 is the upper half of a float.
FASTGEN_INLINE F32 load_all(const BFloat16* p) {
#if defined(__AVX512F__)
  return (F32)(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
#elif defined(__AVX2__)
  return (F32)(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
#else
  U32 v;
  for (int i = 0; i < kLanes32; ++i) v[i] = static_cast<uint32_t>(p[i].bits) << 16;
  return (F32)v;
#endif
}
FASTGEN_INLINE F32 load_all(const float* p) { return load<F32>(p); }
FASTGEN_INLINE F64 load_all(const double* p) { return load<F64>(p); }

FASTGEN_INLINE F32 load_some(const BFloat16* p, int64_t count) {
  BFloat16 some[kLanes32] = {};
  memcpy(some, p, count * sizeof *p);
  return load_all(some);
}

// The lanes of the sums x[r] . w[o]. Rows share what is loaded of w, and the other way round.
template <int R, int O, class T, class W>
FASTGEN_INLINE void multiply(const T* const (&x)[R], const W* const (&w)[O], int64_t inputs,
                             Vec<T> (&sums)[R][O]) {
  // A single row reads the weights once; more rows have too few registers for that, and go part by part.
  constexpr int kTogether = R == 1 && kParts > 1 ? 2 : 1;
  Vec<T> part[kParts][R][O];
#pragma GCC unroll 4
  for (int first = 0; first < kParts; first += kTogether) {
    Vec<T> acc[kTogether][R][O] = {};
    const auto step = [&](int64_t k, int t, auto load_one) __attribute__((always_inline)) {
      Vec<T> row[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) row[r] = load_one(x[r] + k);
#pragma GCC unroll 4
      for (int o = 0; o < O; ++o) {
        const Vec<T> column = load_one(w[o] + k);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) acc[t][r][o] = multiply_add(row[r], column, acc[t][r][o]);
      }
    };
    int64_t k = first * kLanes<T>;
    const int64_t end = inputs / kGroup<T> * kGroup<T>;
    for (; k < end; k += kGroup<T>)
#pragma GCC unroll 2
      for (int t = 0; t < kTogether; ++t) step(k + t * kLanes<T>, t, [](auto* p) { return load_all(p); });
#pragma GCC unroll 2
    for (int t = 0; t < kTogether; ++t, k += kLanes<T>)
      if (k < inputs) {
        const int64_t count = inputs - k < kLanes<T> ? inputs - k : kLanes<T>;
        step(k, t, [count](auto* p) { return load_some(p, count); });
      }
#pragma GCC unroll 2
    for (int t = 0; t < kTogether; ++t)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) part[first + t][r][o] = acc[t][r][o];
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o) {
      if constexpr (kParts == 1) sums[r][o] = part[0][r][o];
      if constexpr (kParts == 2) sums[r][o] = part[0][r][o] + part[1][r][o];
      if constexpr (kParts == 4)
        sums[r][o] = (part[0][r][o] + part[2][r][o]) + (part[1][r][o] + part[3][r][o]);
    }
}

// Within each block of 128 bits: the first halves of a and b, the second halves, even and odd lanes.
template <class V>
FASTGEN_INLINE V first_halves(V a, V b) {
#if defined(__AVX512F__)
  return (V)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (V)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
#else
  return (V)__builtin_shufflevector((U64)a, (U64)b, 0, 2);
#endif
}

template <class V>
FASTGEN_INLINE V second_halves(V a, V b) {
#if defined(__AVX512F__)
  return (V)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (V)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
#else
  return (V)__builtin_shufflevector((U64)a, (U64)b, 1, 3);
#endif
}

FASTGEN_INLINE F32 even_lanes(F32 a, F32 b) {
#if defined(__AVX512F__)
  return (F32)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x88);
#elif defined(__AVX2__)
  return (F32)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6);
#endif
}

FASTGEN_INLINE F32 odd_lanes(F32 a, F32 b) {
#if defined(__AVX512F__)
  return (F32)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xDD);
#elif defined(__AVX2__)
  return (F32)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xDD);
#else
  return __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

// Block i of the result: the sum of the blocks of v[i].
template <class V>
FASTGEN_INLINE V add_blocks(const V (&v)[kBlocks]) {
#if defined(__AVX512F__)
  const auto fold = [](V a, V b, auto first, auto second) {
    return (V)_mm512_shuffle_f64x2((__m512d)a, (__m512d)b, first) +
           (V)_mm512_shuffle_f64x2((__m512d)a, (__m512d)b, second);
  };
  const std::integral_constant<int, 0x44> low{};
  const std::integral_constant<int, 0xEE> high{};
  const std::integral_constant<int, 0x88> even{};
  const std::integral_constant<int, 0xDD> odd{};
  return fold(fold(v[0], v[1], low, high), fold(v[2], v[3], low, high), even, odd);
#elif defined(__AVX2__)
  return (V)_mm256_permute2f128_pd((__m256d)v[0], (__m256d)v[1], 0x20) +
         (V)_mm256_permute2f128_pd((__m256d)v[0], (__m256d)v[1], 0x31);
#else
  return v[0];
#endif
}

// Block i of the result: the sums over the lanes of v[0][i], v[1][i], ..., four floats or two doubles.
FASTGEN_INLINE F32 add_lanes(const F32 (&v)[4][kBlocks]) {
  F32 q[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) q[j] = add_blocks(v[j]);
  const F32 low = first_halves(q[0], q[1]) + second_halves(q[0], q[1]);
  const F32 high = first_halves(q[2], q[3]) + second_halves(q[2], q[3]);
  return even_lanes(low, high) + odd_lanes(low, high);
}

FASTGEN_INLINE F64 add_lanes(const F64 (&v)[2][kBlocks]) {
  const F64 q0 = add_blocks(v[0]), q1 = add_blocks(v[1]);
  return first_halves(q0, q1) + second_halves(q0, q1);
}

}  // namespace fastgen::FASTGEN_ISA

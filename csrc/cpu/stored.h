// Numbers as they lie in memory, float, double or bfloat16, a vector at a time; bfloat16 is computed in
// float.
#pragma once
#include "vector_math.h"

namespace fastgen {

struct Bfloat16 {
  uint16_t bits;
};

}  // namespace fastgen

namespace fastgen::FASTGEN_ISA {

template <class S>
struct Stored;

template <>
struct Stored<float> {
  using Vector = F32;
  FASTGEN_INLINE F32 load(const float* p, int n) {
    return n == kLanes32 ? FASTGEN_ISA::load<F32>(p) : load_first<F32>(p, n);
  }
  FASTGEN_INLINE void store(float* p, F32 v, int n) {
    n == kLanes32 ? FASTGEN_ISA::store(p, v) : store_first(p, v, n);
  }
};

template <>
struct Stored<double> {
  using Vector = F64;
  FASTGEN_INLINE F64 load(const double* p, int n) {
    return n == kLanes64 ? FASTGEN_ISA::load<F64>(p) : load_first<F64>(p, n);
  }
  FASTGEN_INLINE void store(double* p, F64 v, int n) {
    n == kLanes64 ? FASTGEN_ISA::store(p, v) : store_first(p, v, n);
  }
};

typedef uint16_t HalfOfU16 __attribute__((vector_size(kBytes / 2)));

template <>
struct Stored<Bfloat16> {
  using Vector = F32;
  FASTGEN_INLINE F32 load(const Bfloat16* p, int n) {
    HalfOfU16 bits{};
    n == kLanes32 ? memcpy(&bits, p, sizeof bits) : memcpy(&bits, p, n * sizeof *p);
#if defined(__AVX512F__)
    const U32 wide = (U32)_mm512_cvtepu16_epi32((__m256i)bits);  // the compiler's own takes two halves
#elif defined(__AVX2__)
    const U32 wide = (U32)_mm256_cvtepu16_epi32((__m128i)bits);
#else
    const U32 wide = __builtin_convertvector(bits, U32);
#endif
    return (F32)(wide << 16);
  }
  // To the nearest, ties to even; NaN stays NaN.
  FASTGEN_INLINE void store(Bfloat16* p, F32 v, int n) {
    const U32 exact = (U32)v, rounded = (exact + 0x7FFFu + ((exact >> 16) & 1u)) >> 16;
    const U32 quiet = (exact >> 16) | 0x40u;
    const HalfOfU16 bits = __builtin_convertvector(v == v ? rounded : quiet, HalfOfU16);
    n == kLanes32 ? memcpy(p, &bits, sizeof bits) : memcpy(p, &bits, n * sizeof *p);
  }
};

}  // namespace fastgen::FASTGEN_ISA

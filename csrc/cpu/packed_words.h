// Words and halves of integer weights as they come out of their blocks.
#pragma once
#include "dot.h"
#include "packed_linear.h"

namespace fastgen::FASTGEN_ISA {

typedef uint16_t U16 __attribute__((vector_size(kBytes)));
typedef int16_t I16 __attribute__((vector_size(kBytes)));

// How a block lies in memory: 32 values of 4 or 8 bits after a head of float16 numbers.
template <WeightFormat format>
struct BlockLayout {
  static constexpr bool kNibbles = format == WeightFormat::q4_0 || format == WeightFormat::q4_1;
  static constexpr bool kHasMin = format == WeightFormat::q4_1;
  static constexpr bool kMinusEight = format == WeightFormat::q4_0;
  static constexpr int kHead = kHasMin ? 4 : 2;
  static constexpr int kSize = kHead + (kNibbles ? 16 : 32);
};

// acc + the sums of pairs of products of 16-bit integers, exact. `kVnni`: one instruction does it.
template <bool kVnni>
FASTGEN_INLINE I32 add_pairs(I32 acc, I32 a, I32 b) {
#if defined(__AVX512F__)
  if constexpr (kVnni) {
    asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
  } else {
    return acc + (I32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
  }
#elif defined(__AVX2__)
  return acc + (I32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return acc + (I32)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return acc + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// In all lanes; x + 0 would cost an addition.
FASTGEN_INLINE F32 in_all_lanes(float x) { return x - F32{}; }

inline bool has_vnni() {
#if defined(__AVX512F__)
  static const bool found = __builtin_cpu_supports("avx512vnni");
  return found;
#else
  return false;
#endif
}

// Where N rows of a weight begin; after the last of `count` that one again and again.
template <int N>
FASTGEN_INLINE void spread_rows(const uint8_t* first, int64_t stride, int64_t count,
                                const uint8_t* (&row)[N]) {
  row[0] = first;
#pragma GCC unroll 16
  for (int i = 1; i < N; ++i) row[i] = row[i - 1] + (i < count ? stride : 0);
}

// 16 bytes from each of kBlocks places.
template <class At>
FASTGEN_INLINE U16 load_lanes(At at) {
#if defined(__AVX512F__)
  const auto one = [&](int i) { return _mm_loadu_si128((const __m128i*)at(i)); };
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(one(0)), one(1), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(one(2)), one(3), 1);
  return (U16)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#elif defined(__AVX2__)
  const auto one = [&](int i) { return _mm_loadu_si128((const __m128i*)at(i)); };
  return (U16)_mm256_inserti128_si256(_mm256_castsi128_si256(one(0)), one(1), 1);
#else
  return load<U16>(at(0));
#endif
}

// The words that 16 bytes of weights hold, the low halves of bytes or words first.
FASTGEN_INLINE void widen_nibbles(U16 n, I16 (&words)[4]) {
  words[0] = (I16)(n & 15);
  words[1] = (I16)((n >> 8) & 15);
  words[2] = (I16)((n >> 4) & 15);
  words[3] = (I16)(n >> 12);
}
FASTGEN_INLINE void widen_bytes(I16 low, I16 high, I16 (&words)[4]) {
  words[0] = low << 8 >> 8;
  words[1] = low >> 8;
  words[2] = high << 8 >> 8;
  words[3] = high >> 8;
}

inline float widen_half(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7FFF;
  uint32_t bits;
  float value;
  if (rest >= 0x0400) {
    bits = sign | ((rest << 13) + (rest >= 0x7C00 ? 0x70000000u : 0x38000000u));
    memcpy(&value, &bits, 4);
  } else {
    value = (sign ? -0x1p-24f : 0x1p-24f) * static_cast<float>(rest);
  }
  return value;
#endif
}

FASTGEN_INLINE F32 widen_halves(U32 halves) {
#if defined(__AVX512F__)
  return (F32)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)halves));
#elif defined(__F16C__)
  const __m128i low = _mm256_castsi256_si128((__m256i)halves),
                high = _mm256_extracti128_si256((__m256i)halves, 1);
  return (F32)_mm256_cvtph_ps(_mm_packus_epi32(low, high));
#else
  F32 v;
  for (int i = 0; i < kLanes32; ++i) v[i] = widen_half(static_cast<uint16_t>(halves[i]));
  return v;
#endif
}

inline float half_at(const uint8_t* p) {
  uint16_t half;
  memcpy(&half, p, 2);
  return widen_half(half);
}

}  // namespace fastgen::FASTGEN_ISA

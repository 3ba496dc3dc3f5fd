// Vectors of the widest registers of the instruction set this file is compiled for, in the compiler's own
// vector types: + - * & | ^ << >> and comparisons are the language's. Included by the kernels of csrc/cpu
// only, each of which is compiled once per instruction set inside namespace fastgen::FASTGEN_ISA.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "fastgen/math.h"
#include "fastgen/philox.h"

namespace fastgen::FASTGEN_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

typedef uint64_t U64 __attribute__((vector_size(kBytes)));
typedef uint32_t U32 __attribute__((vector_size(kBytes)));
typedef int32_t I32 __attribute__((vector_size(kBytes)));
typedef int64_t I64 __attribute__((vector_size(kBytes)));
typedef float F32 __attribute__((vector_size(kBytes)));
typedef double F64 __attribute__((vector_size(kBytes)));

constexpr int kLanes32 = kBytes / 4, kLanes64 = kBytes / 8;

#define FASTGEN_INLINE static inline __attribute__((always_inline))

FASTGEN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class V>
FASTGEN_INLINE V load(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
FASTGEN_INLINE void store(void* p, V v) {
  memcpy(p, &v, sizeof v);
}

// The first `count` lanes, 0 to all of them; the others are 0 when loaded, and not stored.
template <class V>
FASTGEN_INLINE V load_first(const void* p, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V{}[0]) == 4)
    return (V)_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), p);
  else
    return (V)_mm512_maskz_loadu_epi64(static_cast<__mmask8>((1u << count) - 1), p);
#elif defined(__AVX2__)
  if constexpr (sizeof(V{}[0]) == 4) {
    const I32 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const I32 wanted = lane < static_cast<int32_t>(count);
    return (V)_mm256_maskload_epi32(static_cast<const int*>(p), (__m256i)wanted);
  } else {
    const I64 lane = {0, 1, 2, 3};
    return (V)_mm256_maskload_epi64(static_cast<const long long*>(p), (__m256i)(lane < count));
  }
#else
  V v{};
  memcpy(&v, p, count * sizeof(v[0]));
  return v;
#endif
}
template <class V>
FASTGEN_INLINE void store_first(void* p, V v, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(v[0]) == 4)
    _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << count) - 1), (__m512i)v);
  else
    _mm512_mask_storeu_epi64(p, static_cast<__mmask8>((1u << count) - 1), (__m512i)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(v[0]) == 4) {
    const I32 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const I32 wanted = lane < static_cast<int32_t>(count);
    _mm256_maskstore_epi32(static_cast<int*>(p), (__m256i)wanted, (__m256i)v);
  } else {
    const I64 lane = {0, 1, 2, 3};
    _mm256_maskstore_epi64(static_cast<long long*>(p), (__m256i)(lane < count), (__m256i)v);
  }
#else
  memcpy(p, &v, count * sizeof(v[0]));
#endif
}

// Past the caches, to memory that is not read again soon: it need not be fetched first. `p` is a multiple of
// kBytes. stream_fence() makes it visible to other threads.
template <class V>
FASTGEN_INLINE void stream(void* p, V v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
#else
  store(p, v);
#endif
}
FASTGEN_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

FASTGEN_INLINE U64 broadcast64(uint64_t x) { return U64{} + x; }
FASTGEN_INLINE U32 broadcast32(uint32_t x) { return U32{} + x; }
FASTGEN_INLINE F32 broadcast(float x) { return F32{} + x; }

FASTGEN_INLINE U64 iota64() {
  U64 v;
  for (int i = 0; i < kLanes64; ++i) v[i] = i;
  return v;
}

// Product of the low halves of each 64-bit lane; the high halves are ignored.
FASTGEN_INLINE U64 multiply_low_halves(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (U64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  return (U64)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// Low half of each lane from `low`, high half from the low half of `high`.
FASTGEN_INLINE U64 join_low_halves(U64 low, U64 high) {
#if defined(__AVX512F__)
  return (U64)_mm512_mask_shuffle_epi32((__m512i)low, 0xAAAA, (__m512i)high, (_MM_PERM_ENUM)0xA0);
#elif defined(__AVX2__)
  return (U64)_mm256_blend_epi32((__m256i)low, (__m256i)(high << 32), 0xAA);
#else
  return (low & 0xFFFFFFFFu) | (high << 32);
#endif
}

// a0 b0 a1 b1 ... over two vectors.
FASTGEN_INLINE void interleave64(U64 a, U64 b, U64& first, U64& second) {
#if defined(__AVX512F__)
  first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif defined(__AVX2__)
  first = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  second = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#else
  first = __builtin_shufflevector(a, b, 0, 2);
  second = __builtin_shufflevector(a, b, 1, 3);
#endif
}

FASTGEN_INLINE F32 square_root(F32 x) {
#if defined(__AVX512F__)
  return (F32)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (F32)_mm256_sqrt_ps((__m256)x);
#elif defined(__x86_64__)
  return (F32)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kLanes32; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// a > b ? a : b and a < b ? a : b: where they cannot be compared, b.
FASTGEN_INLINE F32 maximum(F32 a, F32 b) {
#if defined(__AVX512F__)
  return (F32)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (F32)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

FASTGEN_INLINE F32 minimum(F32 a, F32 b) {
#if defined(__AVX512F__)
  return (F32)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (F32)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

FASTGEN_INLINE F64 square_root(F64 x) {
#if defined(__AVX512F__)
  return (F64)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  return (F64)_mm256_sqrt_pd((__m256d)x);
#elif defined(__x86_64__)
  return (F64)_mm_sqrt_pd((__m128d)x);
#else
  for (int i = 0; i < kLanes64; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

FASTGEN_INLINE bool any_bit(U32 x) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#else
  uint64_t halves[2];
  memcpy(halves, &x, sizeof halves);
  return (halves[0] | halves[1]) != 0;
#endif
}

// Bit i: lane i is not zero.
FASTGEN_INLINE uint32_t nonzero_lanes(U32 x) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)x, (__m512i)x);
#elif defined(__AVX2__)
  return ~_mm256_movemask_ps((__m256)(x == 0)) & 0xFF;
#elif defined(__x86_64__)
  return ~_mm_movemask_ps((__m128)(x == 0)) & 0xF;
#else
  uint32_t lanes = 0;
  for (int i = 0; i < kLanes32; ++i) lanes |= (x[i] != 0 ? 1u : 0u) << i;
  return lanes;
#endif
}

// The lanes that are set in each byte of bits, in order.
struct LaneLists {
  uint8_t lane[256][8];
  constexpr LaneLists() : lane{} {
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0, n = 0; bit < 8; ++bit)
        if (byte >> bit & 1) lane[byte][n++] = static_cast<uint8_t>(bit);
  }
};

// Of each x[n], the lanes that are set in `lanes`, one after the other from p + n * stride on, where kLanes32
// words may be written.
template <int N>
FASTGEN_INLINE void store_lanes(const U32 (&x)[N], uint32_t lanes, uint32_t* p, int64_t stride) {
#if defined(__AVX512F__)
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
    store(p + n * stride, _mm512_maskz_compress_epi32(static_cast<__mmask16>(lanes), (__m512i)x[n]));
#elif defined(__AVX2__)
  static constexpr LaneLists kLists;
  const __m256i list = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)kLists.lane[lanes]));
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) store(p + n * stride, _mm256_permutevar8x32_epi32((__m256i)x[n], list));
#else
  uint32_t words[N][kLanes32];
  memcpy(words, x, sizeof words);
  for (; lanes; lanes &= lanes - 1, ++p)
    for (int n = 0; n < N; ++n) p[n * stride] = words[n][__builtin_ctz(lanes)];
#endif
}

// Bit i: the highest bit of byte i.
FASTGEN_INLINE uint64_t sign_bits(U64 x) {
#if defined(__AVX512F__)
  return _mm512_movepi8_mask((__m512i)x);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_epi8((__m256i)x));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_epi8((__m128i)x));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kLanes64; ++i)
    bits |= ((x[i] >> 7) & 0x0101010101010101u) * 0x0102040810204080u >> 56 << (8 * i);
  return bits;
#endif
}

// The vector policy of fastgen/math.h.
struct VectorLanes {
  using F = F32;
  using I = I32;
  FASTGEN_INLINE F constant(float x) { return broadcast(x); }
  FASTGEN_INLINE I as_int(F x) { return (I)x; }
  FASTGEN_INLINE F as_float(I x) { return (F)x; }
  FASTGEN_INLINE F to_float(I x) { return __builtin_convertvector(x, F); }
  FASTGEN_INLINE I to_int(F x) { return __builtin_convertvector(x, I); }
  FASTGEN_INLINE F square_root(F x) { return FASTGEN_ISA::square_root(x); }
  FASTGEN_INLINE F maximum(F a, F b) { return FASTGEN_ISA::maximum(a, b); }
  FASTGEN_INLINE F select(I mask, F yes, F no) { return (F)((mask & (I)yes) | (~mask & (I)no)); }
  FASTGEN_INLINE I odd_mask(I x) { return -(x & 1); }
};

}  // namespace fastgen::FASTGEN_ISA

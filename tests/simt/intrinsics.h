// Arithmetic intrinsics. exp, log and their kin are the C library's: a kernel that needs the chip's bits must
// bring its own, as fastgen/math.h does.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

template <class To, class From>
To simt_bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bits of the same size");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}
inline int __float_as_int(float x) { return simt_bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return simt_bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return simt_bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return simt_bit_cast<float>(x); }

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; i++) result |= (x >> i & 1u) << (31 - i);
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }  // -ffp-contract=off: never fused
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __saturatef(float x) { return x > 1 ? 1.f : x > 0 ? x : 0.f; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  return C(b) < C(a) ? C(b) : C(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  return C(a) < C(b) ? C(b) : C(a);
}

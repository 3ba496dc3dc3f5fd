// log, exp, sin and cos in float32 with a fixed order of IEEE operations, so that every backend gets the same
// bits. Compile with contraction off (-ffp-contract=off, -fmad=false): an FMA would round differently.
// Each function takes its lanes as a policy: ScalarLanes here, vectors in csrc/cpu/simd.h.
// The polynomials were fitted with reweighted least squares on Chebyshev nodes (error below 1e-8 relative).
#pragma once
#include <cmath>
#include <cstring>

#include "fastgen/host_device.h"

namespace fastgen {

struct ScalarLanes {
  using F = float;
  using I = int32_t;
  static FASTGEN_MEMBER F constant(float x) { return x; }
  static FASTGEN_MEMBER I as_int(F x) {
    I bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
  }
  static FASTGEN_MEMBER F as_float(I bits) {
    F x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
  static FASTGEN_MEMBER F to_float(I x) { return static_cast<float>(x); }
  static FASTGEN_MEMBER I to_int(F x) { return static_cast<int32_t>(x); }  // towards zero
  static FASTGEN_MEMBER F square_root(F x) {
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(x);
#else
    return __builtin_sqrtf(x);
#endif
  }
  static FASTGEN_MEMBER F maximum(F a, F b) { return a > b ? a : b; }
  static FASTGEN_MEMBER F select(I mask, F yes, F no) { return mask ? yes : no; }  // mask: 0 or -1
  static FASTGEN_MEMBER I odd_mask(I x) { return -(x & 1); }
};

// Uniform in (0, 1), never 0 and never 1: (top + 1/2) / 2^23 with the top 23 bits of a word. They are made
// the fraction of a float in [1, 2); taking 1 - 2^-24 from it is exact.
template <class L>
FASTGEN_HD typename L::F uniform_from_word(typename L::I word) {
  const typename L::I one_and_top = ((word >> 9) & 0x7FFFFF) | 0x3F800000;
  return L::as_float(one_and_top) - L::constant(1.0f - 0x1p-24f);
}

// x = m * 2^exponent of a normal, positive float, m in [sqrt(1/2), sqrt(2)): subtracting the bits of
// sqrt(1/2) makes the shift round there.
template <class L>
struct Split {
  typename L::I exponent;
  typename L::F m;
};

template <class L>
FASTGEN_HD Split<L> split(typename L::F x) {
  const typename L::I bits = L::as_int(x);
  const typename L::I exponent = (bits - 0x3F3504F3) >> 23;
  return {exponent, L::as_float(bits - (exponent << 23))};
}

// exponent * log(2) + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2)).
template <class L>
FASTGEN_HD typename L::F log_of_parts(typename L::I exponent, typename L::F f) {
  using F = typename L::F;
  const F e = L::to_float(exponent);
  F p = L::constant(0.06915578f);
  p = p * f + L::constant(-0.11788799f);
  p = p * f + L::constant(0.11872309f);
  p = p * f + L::constant(-0.12384494f);
  p = p * f + L::constant(0.14218780f);
  p = p * f + L::constant(-0.16669245f);
  p = p * f + L::constant(0.20002219f);
  p = p * f + L::constant(-0.24999987f);
  p = p * f + L::constant(0.33333311f);
  const F square = f * f;
  F small = p * f * square;
  small = small + e * L::constant(-2.12194440e-4f);  // log(2) in two parts, the first one exact in few bits
  small = small - square * L::constant(0.5f);
  return (f + small) + e * L::constant(0.693359375f);
}

// Natural logarithm of a normal, positive float.
template <class L>
FASTGEN_HD typename L::F log(typename L::F x) {
  const Split<L> parts = split<L>(x);
  return log_of_parts<L>(parts.exponent, parts.m - L::constant(1.0f));
}

// Standard exponential -log(1 - v), v = (top 31 bits of a word + 1/2) / 2^31. Small results, which decide who
// comes first, keep their precision: below 1/4, v itself goes into the logarithm, and not 1 - v.
template <class L>
FASTGEN_HD typename L::F exponential_from_word(typename L::I word) {
  using F = typename L::F;
  using I = typename L::I;
  const I top = (word >> 1) & 0x7FFFFFFF;
  const F v = (L::to_float(top) + L::constant(0.5f)) * L::constant(0x1p-31f);
  const F rest = (L::to_float(top ^ 0x7FFFFFFF) + L::constant(0.5f)) * L::constant(0x1p-31f);
  const Split<L> parts = split<L>(rest);
  const I near = (top - (1 << 29)) >> 31;  // all ones where v < 1/4; the exponent of `rest` is 0 there
  const F f = L::select(near, L::constant(0.0f) - v, parts.m - L::constant(1.0f));
  return L::constant(0.0f) - log_of_parts<L>(parts.exponent, f);
}

// Standard Gumbel noise -log(-log(1 - v)), from -3.1 to 22.2.
template <class L>
FASTGEN_HD typename L::F gumbel_from_word(typename L::I word) {
  return L::constant(0.0f) - log<L>(exponential_from_word<L>(word));
}

// exp(x) for x <= 0; below -87 it stays at exp(-87), so that no result is subnormal.
template <class L>
FASTGEN_HD typename L::F exp_nonpositive(typename L::F x) {
  using F = typename L::F;
  using I = typename L::I;
  x = L::maximum(x, L::constant(-87.0f));
  const I n = L::to_int(x * L::constant(1.44269504f) - L::constant(0.5f));  // nearest, since x <= 0
  const F whole = L::to_float(n);
  F r = x - whole * L::constant(0.693359375f);
  r = r - whole * L::constant(-2.12194440e-4f);
  F p = L::constant(1.99177944e-4f);
  p = p * r + L::constant(1.39460489e-3f);
  p = p * r + L::constant(8.33326549e-3f);
  p = p * r + L::constant(4.16662703e-2f);
  p = p * r + L::constant(1.66666669e-1f);
  p = p * r + L::constant(0.5f);
  const F y = (p * (r * r) + r) + L::constant(1.0f);
  return L::as_float(L::as_int(y) + (n << 23));
}

template <class L>
struct SinCos {
  typename L::F sin, cos;
};

// sin and cos of a whole turn times u, u in [0, 1). The reduction to an eighth of a turn is exact.
template <class L>
FASTGEN_HD SinCos<L> sincos_turn(typename L::F u) {
  using F = typename L::F;
  using I = typename L::I;
  const F quarters = u * L::constant(4.0f);
  const I quadrant = L::to_int(quarters + L::constant(0.5f));
  const F r = quarters - L::to_float(quadrant);  // in [-1/2, 1/2] quarter turns
  const F t = r * r;
  F s = L::constant(-0.00460218f);
  s = s * t + L::constant(0.07968023f);
  s = s * t + L::constant(-0.64596348f);
  s = s * t + L::constant(1.57079632f);
  s = s * r;
  F c = L::constant(9.03631701e-4f);
  c = c * t + L::constant(-2.08600713e-2f);
  c = c * t + L::constant(2.53669204e-1f);
  c = c * t + L::constant(-1.23370054f);
  c = c * t + L::constant(1.0f);
  const I swap = L::odd_mask(quadrant);
  const F sine = L::select(swap, c, s), cosine = L::select(swap, s, c);
  // Signs go straight into the sign bit: sine is negative in quadrants 2 and 3, cosine in 1 and 2.
  const I sine_sign = (quadrant & 2) << 30, cosine_sign = ((quadrant + 1) & 2) << 30;
  return {L::as_float(L::as_int(sine) ^ sine_sign), L::as_float(L::as_int(cosine) ^ cosine_sign)};
}

template <class L>
struct NormalPair {
  typename L::F first, second;
};

// Two standard normals from two words (Box and Muller, 1958).
template <class L>
FASTGEN_HD NormalPair<L> normal_from_words(typename L::I word0, typename L::I word1) {
  const typename L::F radius = L::square_root(L::constant(-2.0f) * log<L>(uniform_from_word<L>(word0)));
  const SinCos<L> turn = sincos_turn<L>(uniform_from_word<L>(word1));
  return {radius * turn.cos, radius * turn.sin};
}

}  // namespace fastgen

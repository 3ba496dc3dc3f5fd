// Elementary functions of whole vectors, float and double: exp, expm1, log, log1p, tanh, sigmoid, softplus
// and atan, within 2 units in the last place, subnormal results included; zeros keep their sign, infinities
// and NaN go where IEEE 754 sends them. The bits may differ between instruction sets (with FMA and without);
// the random numbers, whose bits may not, have the functions of fastgen/math.h. The polynomials were fitted
// by interpolation at Chebyshev nodes (relative error below 1e-8 and 2e-17).
#pragma once
#include "simd.h"

namespace fastgen::FASTGEN_ISA {

template <class V>
struct Lane;

template <>
struct Lane<F32> {
  using Scalar = float;
  using Int = I32;
  using Word = U32;
  static constexpr int kCount = kLanes32, kMantissa = 23, kBias = 127;
  static constexpr double kRound = 0x1.8p23;  // x + kRound has the integer nearest to x in its low bits
  static constexpr double kLog2High = 0x1.62e4p-1, kLog2Low = 0x1.7f7d1cf79abcap-20;
  static constexpr double kQuarterPi = 0x1.921fb6p-1, kQuarterPiLow = -0x1.777a5cf72cecep-26;
  static constexpr double kExpLowest = -104, kExpHighest = 89, kExpm1Lowest = -20;
  // (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2.
  static constexpr double kExp[] = {0.5, 0.16666576845993977, 0.04166655443768594, 0.008363202971575855,
                                    0.0013926213466332444};
  // (2 atanh(s) / s - 2) / s^2 in s^2, for 1 + f in [sqrt(1/2), sqrt(2)] and s = f / (2 + f).
  static constexpr double kLog[] = {0.6666666655, 0.4000012203, 0.2855079973, 0.2333104083};
  // (atan(t) / t - 1) / t^2 in t^2, for |t| <= tan(pi / 8).
  static constexpr double kAtan[] = {-0.3333333176, 0.1999953964, -0.1426392637, 0.1074341562,
                                     -0.06450881604};
  // (tanh(x) / x - 1) / x^2 in x^2, for |x| <= 0.55.
  static constexpr double kTanh[] = {-0.33333332, 0.13333114, -0.053909429, 0.021309389, -0.0066102278};
};

template <>
struct Lane<F64> {
  using Scalar = double;
  using Int = I64;
  using Word = U64;
  static constexpr int kCount = kLanes64, kMantissa = 52, kBias = 1023;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLog2High = 0x1.62e42feep-1, kLog2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kQuarterPi = 0x1.921fb54442d18p-1, kQuarterPiLow = 0x1.1a62633145c07p-55;
  static constexpr double kExpLowest = -746, kExpHighest = 710, kExpm1Lowest = -40;
  static constexpr double kExp[] = {0.5,
                                    0.16666666666666671,
                                    0.0416666666666666698,
                                    0.00833333333332611205,
                                    0.00138888888888837318,
                                    0.000198412698749012592,
                                    0.0000248015873256053228,
                                    2.75572552979696444e-6,
                                    2.75572735701021397e-7,
                                    2.51052595384484934e-8,
                                    2.0914717341716376e-9};
  static constexpr double kLog[] = {0.66666666666666697,  0.399999999998991979, 0.285714286261145183,
                                    0.222222111121049474, 0.181828907780261303, 0.153316666765971743,
                                    0.146171283998072999};
  static constexpr double kAtan[] = {-0.333333333333333301, 0.199999999999955,      -0.14285714284662226,
                                     0.111111110149092208,  -0.0909090456402236683, 0.076921828633096927,
                                     -0.066645068351332635, 0.05858108856106755,    -0.0508524017415487812,
                                     0.0392256055958610724, -0.019169476385361265};
};

template <class V>
using Int = typename Lane<V>::Int;

template <class V>
FASTGEN_INLINE V all(double x) {
  return V{} + static_cast<typename Lane<V>::Scalar>(x);
}

// a * b + c, with one rounding where the instruction set has FMA and two where it has not.
template <class V>
FASTGEN_INLINE V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 4)
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  else
    return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  if constexpr (sizeof(a[0]) == 4)
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  else
    return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// c[0] + c[1] x + c[2] x^2 + ...
template <class V, size_t N>
FASTGEN_INLINE V polynomial(const double (&c)[N], V x) {
  V sum = all<V>(c[N - 1]);
#pragma GCC unroll 16
  for (int i = static_cast<int>(N) - 2; i >= 0; --i) sum = multiply_add(sum, x, all<V>(c[i]));
  return sum;
}

template <class V>
FASTGEN_INLINE Int<V> sign_bit() {
  return (Int<V>)-V{};
}

template <class V>
FASTGEN_INLINE V magnitude(V x) {
  return (V)((Int<V>)x & ~sign_bit<V>());
}

// The magnitude of `x` with the sign of `sign`.
template <class V>
FASTGEN_INLINE V with_sign(V x, V sign) {
  return (V)(((Int<V>)x & ~sign_bit<V>()) | ((Int<V>)sign & sign_bit<V>()));
}

// NaN stays NaN.
template <class V>
FASTGEN_INLINE V clamp(V x, double low, double high) {
  x = x < all<V>(low) ? all<V>(low) : x;
  return x > all<V>(high) ? all<V>(high) : x;
}

template <class V>
FASTGEN_INLINE V nearest_integer(V x) {
  return (x + all<V>(Lane<V>::kRound)) - all<V>(Lane<V>::kRound);
}

// 2^n for an integer n of normal result.
template <class V>
FASTGEN_INLINE V power_of_2(V n) {
  return (V)((Int<V>)(n + all<V>(Lane<V>::kRound + Lane<V>::kBias)) << Lane<V>::kMantissa);
}

// x * 2^n, rounded once, for an integer |n| of up to twice the largest exponent.
template <class V>
FASTGEN_INLINE V scale_by_power(V x, V n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(x[0]) == 4)
    return (V)_mm512_scalef_ps((__m512)x, (__m512)n);
  else
    return (V)_mm512_scalef_pd((__m512d)x, (__m512d)n);
#else
  const V half = nearest_integer(n * all<V>(0.5));
  return x * power_of_2(half) * power_of_2(n - half);
#endif
}

template <class V>
struct Reduced {
  V whole, rest, lost;  // x = whole * log(2) + rest + lost, |rest| <= log(2) / 2
};

template <class V>
FASTGEN_INLINE Reduced<V> reduce_by_log2(V x) {
  const V whole = nearest_integer(x * all<V>(1.4426950408889634));
  const V high = multiply_add(whole, all<V>(-Lane<V>::kLog2High), x);  // exact
  const V low = whole * all<V>(Lane<V>::kLog2Low);
  const V rest = high - low;
  return {whole, rest, (high - rest) - low};
}

template <class V>
FASTGEN_INLINE V exp(V x) {
  const Reduced<V> r = reduce_by_log2(clamp(x, Lane<V>::kExpLowest, Lane<V>::kExpHighest));
  const V first = all<V>(1) + r.rest;
  const V lost = (r.rest - (first - all<V>(1))) + r.lost;
  const V power = first + multiply_add(r.rest * r.rest, polynomial(Lane<V>::kExp, r.rest), lost);
  return scale_by_power(power, r.whole);
}

// (exp(x) - 1) / 2^n, with the n of the reduction of x.
template <class V>
FASTGEN_INLINE V scaled_expm1(const Reduced<V>& r, V inverse_power) {
  // exp(rest) - 1 + (1 - 1 / 2^n)
  const V offset = all<V>(1) - inverse_power, first = offset + r.rest;
  const V lost = (r.rest - (first - offset)) + r.lost;
  return first + multiply_add(r.rest * r.rest, polynomial(Lane<V>::kExp, r.rest), lost);
}

// exp(x) - 1.
template <class V>
FASTGEN_INLINE V expm1(V x) {
  const Reduced<V> r = reduce_by_log2(clamp(x, Lane<V>::kExpm1Lowest, Lane<V>::kExpHighest));
  const V scaled = scaled_expm1(r, power_of_2(r.whole > all<V>(100) ? all<V>(-100) : -r.whole));
  return x == V{} ? x : scale_by_power(scaled, r.whole);
}

// log(x + lost) of a positive, normal, finite x.
template <class V>
FASTGEN_INLINE V log_of_sum(V x, V lost, V exponent_offset) {
  using I = Int<V>;
  const I root_half = (I)all<V>(0.70710678118654752);
  const I n = ((I)x - root_half) >> Lane<V>::kMantissa;
  const V m = (V)((I)x - (n << Lane<V>::kMantissa));  // in [sqrt(1/2), sqrt(2))
  const V e = __builtin_convertvector(n, V);
  const V f = m - all<V>(1);
  const V s = f / (all<V>(2) + f), z = s * s, half_square = all<V>(0.5) * f * f;
  const V tail = s * multiply_add(z, polynomial(Lane<V>::kLog, z), half_square);
  const V exponent = e + exponent_offset;
  const V low = multiply_add(exponent, all<V>(Lane<V>::kLog2Low), tail + lost / x);
  return multiply_add(exponent, all<V>(Lane<V>::kLog2High), f - (half_square - low));
}

// What log gives where log_of_sum is not defined: -inf at 0, NaN below, inf and NaN as they come.
template <class V>
FASTGEN_INLINE V log_edges(V x, V inside) {
  inside = x == V{} ? all<V>(-__builtin_inf()) : inside;
  inside = x < V{} ? all<V>(__builtin_nan("")) : inside;
  return x < all<V>(__builtin_inf()) ? inside : x;
}

template <class V>
FASTGEN_INLINE V log(V x) {
  using Scalar = typename Lane<V>::Scalar;
  constexpr double kSmallest = sizeof(Scalar) == 4 ? 0x1p-126 : 0x1p-1022;
  constexpr double kUp = Lane<V>::kMantissa;
  const auto subnormal = x < all<V>(kSmallest);
  const V normal = subnormal ? x * all<V>(static_cast<double>(int64_t{1} << Lane<V>::kMantissa)) : x;
  return log_edges(x, log_of_sum(normal, V{}, subnormal ? all<V>(-kUp) : V{}));
}

// log(1 + x).
template <class V>
FASTGEN_INLINE V log1p(V x) {
  const V sum = all<V>(1) + x;
  // What 1 + x lost in rounding, taken from the larger of the two.
  const V lost = x > all<V>(1) ? all<V>(1) - (sum - x) : x - (sum - all<V>(1));
  const V edges = log_edges(sum, log_of_sum(sum, lost, V{}));
  return x == V{} ? x : edges;
}

// exp(x) of an x whose result is normal, in fewer steps.
template <class V>
FASTGEN_INLINE V exp_within_range(V x) {
  const V whole = nearest_integer(x * all<V>(1.4426950408889634));
  V rest = multiply_add(whole, all<V>(-Lane<V>::kLog2High), x);
  rest = multiply_add(whole, all<V>(-Lane<V>::kLog2Low), rest);
  const V above_1 = multiply_add(rest * rest, polynomial(Lane<V>::kExp, rest), rest);
  return (all<V>(1) + above_1) * power_of_2(whole);
}

// 1 - 2 / (exp(2x) + 1), and a polynomial where that cancels.
FASTGEN_INLINE F32 tanh(F32 x) {
  const F32 a = magnitude(x), square = x * x;
  const F32 inner = multiply_add(x * square, polynomial(Lane<F32>::kTanh, square), x);
  const F32 power = exp_within_range(all<F32>(2) * (a > all<F32>(10) ? all<F32>(10) : a));
  const F32 outer = all<F32>(1) - all<F32>(2) / (power + all<F32>(1));
  return with_sign(a > all<F32>(0.55) ? outer : inner, x);
}

// 1 - 2 / (exp(2x) + 1), and where that cancels (exp(2x) - 1) / (exp(2x) + 1), or the same of -x, whichever
// expm1 has the smaller error.
FASTGEN_INLINE F64 tanh(F64 x) {
  using V = F64;
  V a = magnitude(x);
  a = a > all<V>(20) ? all<V>(20) : a;
  const auto large = a > all<V>(0.55);
  const Reduced<V> r = reduce_by_log2((a > all<V>(0.14) ? all<V>(2) : all<V>(-2)) * a);
  const V t = scaled_expm1(r, power_of_2(-r.whole)) * power_of_2(r.whole);
  const V sum = t + all<V>(2), lost = t - (sum - all<V>(2));
  V ratio = (large ? all<V>(2) : t) / sum;
  const V half_inverse = (large ? ratio : all<V>(1) - ratio) * all<V>(0.5);
  ratio = ratio - ratio * (lost * half_inverse);
  return with_sign(large ? all<V>(1) - ratio : ratio, x);
}

// 1 / (1 + exp(-x)), and where exp would overflow exp(x) / (1 + exp(x)).
template <class V>
FASTGEN_INLINE V sigmoid(V x) {
  const auto negative = x < V{};
  const V t = exp(-magnitude(x));
  const V sum = all<V>(1) + t, lost = t - (sum - all<V>(1));
  const V ratio = (negative ? t : all<V>(1)) / sum;
  const V inverse = negative ? all<V>(1) - ratio : ratio;
  return ratio - ratio * (lost * inverse);
}

// log(1 + exp(x)).
template <class V>
FASTGEN_INLINE V softplus(V x) {
  const V positive = x > V{} ? x : V{};
  const V sum = positive + log1p(exp(-magnitude(x)));
  return x == x ? sum : x;
}

template <class V>
FASTGEN_INLINE V atan(V x) {
  const V a = magnitude(x);
  const auto middle = a > all<V>(0.41421356237309503), far = a > all<V>(2.4142135623730950);
  // atan(a) = pi/4 + atan((a - 1) / (a + 1)) = pi/2 - atan(1 / a).
  const V above = far ? all<V>(-1) : middle ? a - all<V>(1) : a;
  const V below = far ? a : middle ? a + all<V>(1) : all<V>(1);
  const V t = above / below, z = t * t;
  const V high = far ? all<V>(2 * Lane<V>::kQuarterPi) : middle ? all<V>(Lane<V>::kQuarterPi) : V{};
  const V low = far ? all<V>(2 * Lane<V>::kQuarterPiLow) : middle ? all<V>(Lane<V>::kQuarterPiLow) : V{};
  return with_sign(high + (t + multiply_add(t * z, polynomial(Lane<V>::kAtan, z), low)), x);
}

}  // namespace fastgen::FASTGEN_ISA

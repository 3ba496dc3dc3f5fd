// How a raw number becomes the scale of an affine map: the formulas of fastgen/reference/affine_coupling.py,
// and their derivatives.
#pragma once
#include "affine_coupling.h"
#include "vector_math.h"

namespace fastgen::FASTGEN_ISA {

template <class V>
struct ScaleOptions {
  V clamp, inverse_clamp, min_scale;
  bool floored;       // min_scale > 0
  bool within_range;  // no clamped scale is subnormal or infinite
  ScaleOptions(double c, double m)
      : clamp(all<V>(c)),
        inverse_clamp(all<V>(1 / c)),
        min_scale(all<V>(m)),
        floored(m > 0),
        within_range(c < 80) {}
};

template <class V>
struct Scaled {
  V factor, log;  // of an inverse, one over the scale and minus its logarithm
};

template <class V>
struct ScaledSlope {
  V factor, slope;  // slope: of log by raw
};

// exp(x) = 2^whole (1 + above_1), in few steps that wait for each other.
struct Exponential {
  F32 whole, above_1;
};
FASTGEN_INLINE Exponential exponential(F32 x) {
#if defined(__AVX512F__)
  const __m512 product = (__m512)(x * all<F32>(1.4426950408889634));
  const F32 whole = (F32)_mm512_roundscale_ps(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const F32 whole = nearest_integer(x * all<F32>(1.4426950408889634));
#endif
  F32 rest = multiply_add(whole, all<F32>(-Lane<F32>::kLog2High), x);
  rest = multiply_add(whole, all<F32>(-Lane<F32>::kLog2Low), rest);
  const F32 square = rest * rest;
  constexpr auto& c = Lane<F32>::kExp;
  const F32 low = multiply_add(all<F32>(c[1]), rest, all<F32>(c[0]));
  const F32 high = multiply_add(all<F32>(c[3]), rest, all<F32>(c[2]));
  const F32 sum = multiply_add(multiply_add(all<F32>(c[4]), square, high), square, low);
  return {whole, multiply_add(square, sum, rest)};
}

// exp(x) of an x whose result is normal.
FASTGEN_INLINE F32 quick_exp(F32 x) {
  const auto [whole, above_1] = exponential(x);
#if defined(__AVX512F__)
  return scale_by_power(all<F32>(1) + above_1, whole);
#else
  return (all<F32>(1) + above_1) * power_of_2(whole);
#endif
}
FASTGEN_INLINE F64 quick_exp(F64 x) { return exp_within_range(x); }

// (exp(2x) - 1) / (exp(2x) + 1), where exp(2x) - 1 = 2^n (exp(r) - 1) + (2^n - 1) cancels nowhere: within 2.6
// units in the last place, in two thirds of the steps of tanh.
FASTGEN_INLINE F32 quick_tanh(F32 x) {
  const auto [whole, above_1] = exponential(minimum(all<F32>(20), maximum(all<F32>(-20), x + x)));
  const F32 power = power_of_2(whole), t = multiply_add(power, above_1, power - all<F32>(1));
  return t / (t + all<F32>(2));
}
FASTGEN_INLINE F64 quick_tanh(F64 x) { return tanh(x); }

// The logarithm of the scale, for those maps that are made of it.
template <ScaleMap map, class V>
FASTGEN_INLINE V bounded_log(V raw, const ScaleOptions<V>& options) {
  if constexpr (map == ScaleMap::tanh) return options.clamp * quick_tanh(raw * options.inverse_clamp);
  if constexpr (map == ScaleMap::atan)
    return options.clamp * all<V>(0.636) * atan(raw * options.inverse_clamp);
  if constexpr (map == ScaleMap::softclip)
    return raw / multiply_add(magnitude(raw), options.inverse_clamp, all<V>(1));
  return raw;
}

template <ScaleMap map, class V>
FASTGEN_INLINE V exp_of_log(V log_scale, const ScaleOptions<V>& options) {
  return map != ScaleMap::exp && options.within_range ? quick_exp(log_scale) : exp(log_scale);
}

template <ScaleMap map>
constexpr bool made_of_log() {
  return map <= ScaleMap::softclip;
}

// What sigmoid and softplus take. Below kLow both are exp(a) to rounding, whose logarithm outlives its
// underflow.
template <ScaleMap map, class V>
FASTGEN_INLINE V argument(V raw) {
  return map == ScaleMap::softplus ? raw : raw + all<V>(2);
}
template <class V>
constexpr double kLow = sizeof(typename Lane<V>::Scalar) == 4 ? -20 : -40;

template <ScaleMap map, class V>
FASTGEN_INLINE Scaled<V> scale_of(V raw, const ScaleOptions<V>& options, bool inverse) {
  if constexpr (made_of_log<map>()) {
    V log_scale = bounded_log<map>(raw, options);
    if (inverse) log_scale = -log_scale;
    return {exp_of_log<map>(log_scale, options), log_scale};
  } else {
    const V a = argument<map>(raw);
    V scale = map == ScaleMap::softplus ? softplus(a) : sigmoid(a);
    if constexpr (map != ScaleMap::reciprocal_sigmoid) scale = scale + options.min_scale;
    V log_scale = log(scale);
    if (!options.floored) log_scale = a < all<V>(kLow<V>) ? a : log_scale;
    const bool flip = inverse != (map == ScaleMap::reciprocal_sigmoid);
    return {flip ? all<V>(1) / scale : scale, flip ? -log_scale : log_scale};
  }
}

template <ScaleMap map, class V>
FASTGEN_INLINE ScaledSlope<V> scale_and_slope(V raw, const ScaleOptions<V>& options, bool inverse) {
  if constexpr (made_of_log<map>()) {
    const V log_scale = bounded_log<map>(raw, options), t = raw * options.inverse_clamp;
    V slope = all<V>(1);
    if constexpr (map == ScaleMap::tanh) {
      const V value = log_scale * options.inverse_clamp;
      slope = (all<V>(1) - value) * (all<V>(1) + value);
    }
    if constexpr (map == ScaleMap::atan) slope = all<V>(0.636) / multiply_add(t, t, all<V>(1));
    if constexpr (map == ScaleMap::softclip) {
      const V sum = magnitude(t) + all<V>(1);
      slope = all<V>(1) / (sum * sum);
    }
    return {exp_of_log<map>(inverse ? -log_scale : log_scale, options), inverse ? -slope : slope};
  } else {
    const V a = argument<map>(raw), s = sigmoid(a);
    if constexpr (map == ScaleMap::reciprocal_sigmoid) {
      const V slope = sigmoid(-a);
      return {inverse ? s : all<V>(1) / s, inverse ? slope : -slope};
    } else {
      const V bare = map == ScaleMap::softplus ? softplus(a) : s;
      const V scale = bare + options.min_scale;
      V slope = s / scale;
      if (!options.floored) slope = a < all<V>(kLow<V>) ? all<V>(1) : slope;
      if constexpr (map == ScaleMap::sigmoid) slope = slope * sigmoid(-a);
      return {inverse ? all<V>(1) / scale : scale, inverse ? -slope : slope};
    }
  }
}

}  // namespace fastgen::FASTGEN_ISA

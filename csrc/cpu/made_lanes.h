// Pieces of made_inverse on vectors of rows: sums of a panel of units, activations, transforms.
#pragma once
#include "activation.h"
#include "made_inverse.h"
#include "rq_spline_lanes.h"

namespace fastgen::FASTGEN_ISA {

template <class V>
using Scalar = typename Lane<V>::Scalar;

#if defined(__AVX512F__)
constexpr int kUnits = 8;  // units whose sums are in registers together, with those of two vectors of rows
#else
constexpr int kUnits = 4;
#endif

// Adds inputs to the sums of a panel, one after the other. Numbers of a unit and of an input are N vectors.
template <int N, class V>
static void add_inputs(V* sums, const Scalar<V>* weights, const V* inputs, int64_t count) {
  for (int begin = 0; begin < kMadePanel; begin += kUnits, sums += kUnits * N, weights += kUnits) {
    V acc[kUnits][N];
#pragma GCC unroll 8
    for (int u = 0; u < kUnits; ++u)
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) acc[u][v] = sums[u * N + v];
    for (int64_t i = 0; i < count; ++i) {
      V x[N];
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) x[v] = inputs[i * N + v];
#pragma GCC unroll 8
      for (int u = 0; u < kUnits; ++u) {
        const V w = weights[i * kMadePanel + u] - V{};
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) acc[u][v] = multiply_add(w, x[v], acc[u][v]);
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < kUnits; ++u)
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) sums[u * N + v] = acc[u][v];
  }
}

template <Activation kind, class V>
static void activate_all(V* to, const V* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = activate<kind>(from[i]);
}

template <class V>
using ActivateAll = void (*)(V*, const V*, int64_t);

template <class V>
static ActivateAll<V> activation_of(Activation kind) {
  using A = Activation;
  static constexpr ActivateAll<V> kAll[] = {activate_all<A::none, V>,       activate_all<A::relu, V>,
                                            activate_all<A::leaky_relu, V>, activate_all<A::elu, V>,
                                            activate_all<A::gelu, V>,       activate_all<A::gelu_tanh, V>,
                                            activate_all<A::silu, V>,       activate_all<A::tanh, V>,
                                            activate_all<A::sigmoid, V>,    activate_all<A::softplus, V>};
  return kAll[static_cast<int64_t>(kind)];
}

template <class V>
FASTGEN_INLINE V log_scale_of(const MadeInverse& task, V raw) {
  const V clamp = all<V>(task.clamp);
  switch (task.scale_map) {
    case ScaleMap::tanh:
      return clamp * tanh(raw / clamp);
    case ScaleMap::atan:
      return all<V>(task.clamp * 0.636) * atan(raw / clamp);
    case ScaleMap::softclip:
      return softclip(raw, task.clamp);
    case ScaleMap::reciprocal_sigmoid:
      return softplus(all<V>(-2) - raw);
    case ScaleMap::sigmoid:
    case ScaleMap::softplus: {
      const bool sigmoidal = task.scale_map == ScaleMap::sigmoid;
      const V a = sigmoidal ? raw + all<V>(2) : raw;
      const V scale = log((sigmoidal ? sigmoid(a) : softplus(a)) + all<V>(task.min_scale));
      if (task.min_scale != 0) return scale;
      // Far below zero both maps are exp(a); where that underflows, its logarithm is still there.
      return a < all<V>(sizeof(Scalar<V>) == 4 ? -20 : -40) ? a : scale;
    }
    default:
      return raw;
  }
}

// x from z and the raw parameters of one feature; `powers` has room for 2 * bins vectors.
template <class V>
FASTGEN_INLINE V invert(const MadeInverse& task, V z, const V* raw, V* powers, V& log_det) {
  if (task.spline) return transform<true>(task.curve, z, raw, powers, log_det);
  log_det = -log_scale_of(task, raw[0]);
  return (z - raw[1]) * exp(log_det);
}

}  // namespace fastgen::FASTGEN_ISA

// Activations of whole vectors, as PyTorch defines them, and the epilogue of a row of sums.
#pragma once
#include <cmath>

#include "dot.h"
#include "linear.h"

namespace fastgen::FASTGEN_ISA {

// The normal distribution function times z. erfc(a) = exp(-a^2) t q(t), t = 1 / (1 + 0.35 a), a = |z| /
// 2^0.5; q was fitted by least squares on Chebyshev nodes (relative error below 1e-8).
FASTGEN_INLINE F32 gelu(F32 z) {
  constexpr double kHalfErfc[] = {0.09874285078,  0.09855296485, 0.09406811596,  0.07511914647,
                                  0.07421330402,  0.04157589257, -0.01182741161, 0.08940668431,
                                  -0.07897332786, 0.01912178416};
  const F32 t = all<F32>(1) / multiply_add(magnitude(z), all<F32>(0.2474873734152916), all<F32>(1));
  const F32 tail = exp(all<F32>(-0.5) * z * z) * t * polynomial(kHalfErfc, t);
  return z * (z < F32{} ? tail : all<F32>(1) - tail);
}

FASTGEN_INLINE F64 gelu(F64 z) {
  for (int i = 0; i < kLanes64; ++i) z[i] *= 0.5 * std::erfc(z[i] * -0.70710678118654752);
  return z;
}

template <Activation kind, class V>
FASTGEN_INLINE V activate(V z) {
  const V zero{};
  if constexpr (kind == Activation::none) return z;
  if constexpr (kind == Activation::relu) return z < zero ? zero : z;
  if constexpr (kind == Activation::leaky_relu) return z < zero ? z * all<V>(0.01) : z;
  if constexpr (kind == Activation::elu) return z > zero ? z : expm1(z);
  if constexpr (kind == Activation::gelu) return gelu(z);
  if constexpr (kind == Activation::gelu_tanh) {
    const V inner = all<V>(0.79788456080286536) * multiply_add(all<V>(0.044715) * z * z, z, z);
    return all<V>(0.5) * z * (all<V>(1) + tanh(inner));
  }
  if constexpr (kind == Activation::silu) return z * sigmoid(z);
  if constexpr (kind == Activation::tanh) return tanh(z);
  if constexpr (kind == Activation::sigmoid) return sigmoid(z);
  if constexpr (kind == Activation::softplus) return z > all<V>(20) ? z : softplus(z);
}

// y, the sums, becomes activation(y + bias) + residual.
template <Activation kind, class T>
static void finish_row(T* y, const T* bias, const T* residual, int64_t count) {
  if (kind == Activation::none && !bias && !residual) return;
  const auto step = [&](int64_t i, auto load_one) __attribute__((always_inline)) {
    Vec<T> z = load_one(y + i);
    if (bias) z += load_one(bias + i);
    z = activate<kind>(z);
    return residual ? z + load_one(residual + i) : z;
  };
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(y + i, step(i, [](auto* p) { return load_all(p); }));
  if (const int64_t left = count - i; left > 0) {
    const Vec<T> last = step(i, [left](auto* p) { return load_some(p, left); });
    memcpy(y + i, &last, left * sizeof(T));
  }
}

template <class T>
using FinishRow = void (*)(T*, const T*, const T*, int64_t);

template <class T>
static FinishRow<T> finisher(Activation kind) {
  using A = Activation;
  static constexpr FinishRow<T> kAll[] = {finish_row<A::none, T>,       finish_row<A::relu, T>,
                                          finish_row<A::leaky_relu, T>, finish_row<A::elu, T>,
                                          finish_row<A::gelu, T>,       finish_row<A::gelu_tanh, T>,
                                          finish_row<A::silu, T>,       finish_row<A::tanh, T>,
                                          finish_row<A::sigmoid, T>,    finish_row<A::softplus, T>};
  return kAll[static_cast<int64_t>(kind)];
}

}  // namespace fastgen::FASTGEN_ISA

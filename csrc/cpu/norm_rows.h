// Rows of rms_norm and, with their mean taken away (`kCentred`), of layer_norm.
//
// A sum over a row has 64 chains: element i goes to chain i mod 64, in order, and the chains are added as a
// tree, j and j + 32, j and j + 16, and so on.
#pragma once
#include <cmath>

#include "norm.h"
#include "stored.h"

namespace fastgen::FASTGEN_ISA {

constexpr int kChains = 64;

template <class V>
using Scalar = typename Lane<V>::Scalar;

template <class V>
struct Chains {
  static constexpr int kVectors = kChains / Lane<V>::kCount;
  V lanes[kVectors]{};

  Scalar<V> total() {
#pragma GCC unroll 16
    for (int n = kVectors / 2; n > 0; n /= 2)
      for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
    Scalar<V> last[Lane<V>::kCount];
    store(last, lanes[0]);
    for (int n = Lane<V>::kCount / 2; n > 0; n /= 2)
      for (int i = 0; i < n; ++i) last[i] += last[i + n];
    return last[0];
  }
};

// body(first element, how many of a vector, number of the vector among those of the chains) over a row.
template <class V, class Body>
FASTGEN_INLINE void for_each_vector(int64_t width, Body body) {
  constexpr int n = Lane<V>::kCount, kVectors = Chains<V>::kVectors;
  int64_t i = 0;
  for (; i + kChains <= width; i += kChains)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) body(i + v * n, n, v);
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v)
    if (i + v * n < width) body(i + v * n, static_cast<int>(smaller(width - i - v * n, n)), v);
}

#define FASTGEN_BODY(...) [&](__VA_ARGS__) __attribute__((always_inline))

// x with zero behind its first n lanes.
template <class V>
FASTGEN_INLINE V first_of(V x, int n) {
  if (n == Lane<V>::kCount) return x;
  Int<V> lane;
  for (int i = 0; i < Lane<V>::kCount; ++i) lane[i] = i;
  return lane < static_cast<decltype(Int<V>{}[0] + 0)>(n) ? x : V{};
}

template <class V>
struct Moments {
  V mean, inverse;  // of the root of the variance, or of the mean square
};

template <bool kCentred, class S>
FASTGEN_INLINE auto moments(const S* row, int64_t width, double eps) {
  using V = typename Stored<S>::Vector;
  const Scalar<V> count = static_cast<Scalar<V>>(width);
  V mean{};
  if constexpr (kCentred) {
    Chains<V> sum;
    for_each_vector<V>(
        width, FASTGEN_BODY(int64_t i, int n, int v) { sum.lanes[v] += Stored<S>::load(row + i, n); });
    mean = V{} + sum.total() / count;
  }
  Chains<V> squares;
  for_each_vector<V>(
      width, FASTGEN_BODY(int64_t i, int n, int v) {
        V x = Stored<S>::load(row + i, n);
        if constexpr (kCentred) x = first_of(x - mean, n);
        squares.lanes[v] = multiply_add(x, x, squares.lanes[v]);
      });
  const Scalar<V> root = std::sqrt(squares.total() / count + static_cast<Scalar<V>>(eps));
  return Moments<V>{mean, V{} + Scalar<V>(1) / root};
}

// The sum of two rows, rounded as it is stored.
template <class S>
FASTGEN_INLINE void add_rows(const S* x, const S* residual, S* sum, int64_t width) {
  using V = typename Stored<S>::Vector;
  for_each_vector<V>(
      width, FASTGEN_BODY(int64_t i, int n, int) {
        Stored<S>::store(sum + i, Stored<S>::load(x + i, n) + Stored<S>::load(residual + i, n), n);
      });
}

template <bool kCentred, class S>
void normalize_rows(const Norm& task, int64_t first_row, int64_t last_row) {
  using V = typename Stored<S>::Vector;
  using W = Stored<Scalar<V>>;
  const auto *weight = static_cast<const Scalar<V>*>(task.weight),
             *bias = static_cast<const Scalar<V>*>(task.bias);
  const int64_t width = task.width;
  for (int64_t r = first_row; r < last_row; ++r) {
    const S* row = static_cast<const S*>(task.x) + r * width;
    if (task.residual) {
      S* sum = static_cast<S*>(task.sum) + r * width;
      add_rows(row, static_cast<const S*>(task.residual) + r * width, sum, width);
      row = sum;
    }
    const Moments<V> of = moments<kCentred>(row, width, task.eps);
    S* y = static_cast<S*>(task.y) + r * width;
    for_each_vector<V>(
        width, FASTGEN_BODY(int64_t i, int n, int) {
          V x = Stored<S>::load(row + i, n);
          if constexpr (kCentred) x -= of.mean;
          const V scaled = x * of.inverse, w = W::load(weight + i, n);
          Stored<S>::store(y + i, bias ? multiply_add(scaled, w, W::load(bias + i, n)) : scaled * w, n);
        });
  }
}

// With h = (x - mean) / root and g = grad weight: grad_x = (g - mean(g) - h mean(g h)) / root, where rms_norm
// has no mean(g).
template <bool kCentred, class S>
void differentiate_row(const NormBackward& task, int64_t r, int64_t block) {
  using V = typename Stored<S>::Vector;
  using W = Stored<Scalar<V>>;
  const int64_t width = task.width;
  const S *row = static_cast<const S*>(task.x) + r * width,
          *grad = static_cast<const S*>(task.grad) + r * width;
  const auto* weight = static_cast<const Scalar<V>*>(task.weight);
  auto* grad_weight = static_cast<Scalar<V>*>(task.grad_weight) + block * width;
  auto* grad_bias = static_cast<Scalar<V>*>(task.grad_bias) + block * width;
  const Moments<V> of = moments<kCentred>(row, width, task.eps);
  const auto standard = FASTGEN_BODY(int64_t i, int n) {
    return first_of((Stored<S>::load(row + i, n) - of.mean) * of.inverse, n);
  };
  Chains<V> sum, product;
  for_each_vector<V>(
      width, FASTGEN_BODY(int64_t i, int n, int v) {
        const V h = standard(i, n), out = Stored<S>::load(grad + i, n), g = out * W::load(weight + i, n);
        product.lanes[v] = multiply_add(g, h, product.lanes[v]);
        W::store(grad_weight + i, multiply_add(out, h, W::load(grad_weight + i, n)), n);
        if constexpr (kCentred) {
          sum.lanes[v] += g;
          W::store(grad_bias + i, W::load(grad_bias + i, n) + out, n);
        }
      });
  const Scalar<V> count = static_cast<Scalar<V>>(width);
  const V along = V{} + product.total() / count, level = kCentred ? V{} + sum.total() / count : V{};
  S* grad_x = static_cast<S*>(task.grad_x) + r * width;
  for_each_vector<V>(
      width, FASTGEN_BODY(int64_t i, int n, int) {
        const V g = Stored<S>::load(grad + i, n) * W::load(weight + i, n);
        Stored<S>::store(grad_x + i, multiply_add(-standard(i, n), along, g - level) * of.inverse, n);
      });
}

template <bool kCentred, class S>
void differentiate_blocks(const NormBackward& task, int64_t first_block, int64_t last_block) {
  constexpr size_t kBytesEach = sizeof(Scalar<typename Stored<S>::Vector>);
  const int64_t bytes = task.width * kBytesEach;
  for (int64_t block = first_block; block < last_block; ++block) {
    memset(static_cast<char*>(task.grad_weight) + block * bytes, 0, bytes);
    if constexpr (kCentred) memset(static_cast<char*>(task.grad_bias) + block * bytes, 0, bytes);
    const int64_t end = smaller((block + 1) * task.kBlock, task.rows);
    for (int64_t r = block * task.kBlock; r < end; ++r) differentiate_row<kCentred, S>(task, r, block);
  }
}

template <bool kCentred>
void normalize(const Norm& task, int64_t first, int64_t last) {
  if (task.storage == Storage::float64) return normalize_rows<kCentred, double>(task, first, last);
  if (task.storage == Storage::bfloat16) return normalize_rows<kCentred, Bfloat16>(task, first, last);
  normalize_rows<kCentred, float>(task, first, last);
}

template <bool kCentred>
void differentiate(const NormBackward& task, int64_t first, int64_t last) {
  if (task.storage == Storage::float64) return differentiate_blocks<kCentred, double>(task, first, last);
  if (task.storage == Storage::bfloat16) return differentiate_blocks<kCentred, Bfloat16>(task, first, last);
  differentiate_blocks<kCentred, float>(task, first, last);
}

}  // namespace fastgen::FASTGEN_ISA

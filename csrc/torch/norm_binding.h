// What the bindings of rms_norm and layer_norm share.
#pragma once
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "../cpu/norm.h"
#include "direct.h"

namespace fastgen {

constexpr int64_t kNormGrain = 1 << 14;  // numbers that are worth a thread: some 5 us

inline Storage norm_storage(const View& x) {
  require(x.dims > 0 && x.is_contiguous(), "bad x");
  if (x.type == ScalarType::Double) return Storage::float64;
  if (x.type == ScalarType::BFloat16) return Storage::bfloat16;
  require(x.type == ScalarType::Float, "bad x");
  return Storage::float32;
}

inline void* like_x(const View& t, const View& x, const char* what) {
  require(t.is(x.type) && t.is_like(x, x.last()), what);
  return t.memory;
}

// A number for each place of a row, in the dtype that rows are computed in.
inline void* per_place(const View& t, const View& x, const char* what) {
  const auto real = x.type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  require(t.is(real) && t.dims == 1 && t.size(0) == x.last(), what);
  return t.memory;
}

using NormKernel = void (*)(const Norm&, int64_t, int64_t);
using NormBackwardKernel = void (*)(const NormBackward&, int64_t, int64_t);

// All but y and the sum.
inline Norm norm_of(const View& x, const View& weight, const std::optional<View>& bias, double eps,
                    const std::optional<View>& residual) {
  Norm task{};
  task.storage = norm_storage(x), task.width = x.last(), task.eps = eps;
  require(eps >= 0 && std::isfinite(eps), "bad eps");
  task.x = x.memory, task.weight = per_place(weight, x, "bad weight");
  if (bias) task.bias = per_place(*bias, x, "bad bias");
  if (residual) task.residual = like_x(*residual, x, "bad residual");
  return task;
}

inline void run_norm(const Norm& task, const View& x, NormKernel kernel) {
  const int64_t rows = x.rows(), bytes = x.numel() * x.element_size;
  if (bytes == 0) return;
  prefer_huge_pages(task.y, bytes);
  if (task.residual) prefer_huge_pages(task.sum, bytes);
  parallel_for(0, rows, std::max<int64_t>(1, kNormGrain / task.width),
               [&](int64_t first, int64_t last) { kernel(task, first, last); });
}

inline void norm_out(const View& y, const View& sum, const View& x, const View& weight,
                     const std::optional<View>& bias, double eps, const std::optional<View>& residual,
                     NormKernel kernel) {
  Norm task = norm_of(x, weight, bias, eps, residual);
  task.y = like_x(y, x, "bad y");
  if (residual) task.sum = like_x(sum, x, "bad sum");
  run_norm(task, x, kernel);
}

// y, or with a residual (y, sum).
inline PyObject* norm_direct(Arguments& given, bool has_bias, NormKernel kernel) {
  const View x = given.tensor(), weight = given.tensor();
  const std::optional<View> bias = has_bias ? given.maybe_tensor() : std::nullopt;
  const double eps = given.number();
  const std::optional<View> residual = given.maybe_tensor();
  if (!given.plain()) return nullptr;
  Norm task = norm_of(x, weight, bias, eps, residual);
  Result y(x, x.last());
  task.y = y.memory();
  if (!residual) {
    without_lock([&] { run_norm(task, x, kernel); });
    return y.release();
  }
  Result sum(x, x.last());
  task.sum = sum.memory();
  without_lock([&] { run_norm(task, x, kernel); });
  return pair_of(y, sum);
}

// The blocks of rows one after the other.
template <class T>
void add_up(const std::vector<char>& blocks, int64_t count, int64_t width, void* total) {
  const T* block = reinterpret_cast<const T*>(blocks.data());
  T* sum = static_cast<T*>(total);
  std::fill(sum, sum + width, T{});
  for (int64_t b = 0; b < count; ++b)
    for (int64_t i = 0; i < width; ++i) sum[i] += block[b * width + i];
}

inline void run_norm_backward(const View& grad_x, const View& grad_weight, const View* grad_bias,
                              const View& grad, const View& x, const View& weight, double eps,
                              NormBackwardKernel kernel) {
  NormBackward task{};
  task.storage = norm_storage(x), task.rows = x.rows(), task.width = x.last(), task.eps = eps;
  task.x = x.memory, task.grad = like_x(grad, x, "bad grad"), task.grad_x = like_x(grad_x, x, "bad grad_x");
  task.weight = per_place(weight, x, "bad weight");
  void* const weight_total = per_place(grad_weight, x, "bad grad_weight");
  void* const bias_total = grad_bias ? per_place(*grad_bias, x, "bad grad_bias") : nullptr;
  const bool wide = task.storage == Storage::float64;
  const size_t bytes = static_cast<size_t>(task.blocks() * task.width) * (wide ? 8 : 4);
  std::vector<char> of_weight(bytes), of_bias(grad_bias ? bytes : 0);
  task.grad_weight = of_weight.data(), task.grad_bias = of_bias.data();
  prefer_huge_pages(task.grad_x, x.numel() * x.element_size);
  if (task.width > 0)
    parallel_for(0, task.blocks(), 1, [&](int64_t first, int64_t last) { kernel(task, first, last); });
  const auto add = wide ? add_up<double> : add_up<float>;
  add(of_weight, task.blocks(), task.width, weight_total);
  if (grad_bias) add(of_bias, task.blocks(), task.width, bias_total);
}

}  // namespace fastgen

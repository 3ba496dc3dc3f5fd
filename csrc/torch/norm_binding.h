// What the bindings of rms_norm and layer_norm share.
#pragma once
#include <algorithm>
#include <optional>
#include <vector>

#include "../cpu/norm.h"
#include "native.h"

namespace fastgen {

constexpr int64_t kNormGrain = 1 << 14;  // numbers that are worth a thread: some 5 us

inline Storage norm_storage(const Tensor& x) {
  require(x.dim() == 2 && x.is_contiguous(), "bad x");
  if (x.scalar_type() == ScalarType::Double) return Storage::float64;
  if (x.scalar_type() == ScalarType::BFloat16) return Storage::bfloat16;
  require(x.scalar_type() == ScalarType::Float, "bad x");
  return Storage::float32;
}

inline void* like_x(const Tensor& t, const Tensor& x, const char* what) {
  require(t.is_contiguous() && t.scalar_type() == x.scalar_type() && t.numel() == x.numel(), what);
  return t.data_ptr();
}

// A number for each place of a row, in the dtype that rows are computed in.
inline void* per_place(const Tensor& t, const Tensor& x, const char* what) {
  const auto real = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  require(t.is_contiguous() && t.scalar_type() == real && t.numel() == x.size(1), what);
  return t.data_ptr();
}

using NormKernel = void (*)(const Norm&, int64_t, int64_t);
using NormBackwardKernel = void (*)(const NormBackward&, int64_t, int64_t);

inline void run_norm(const Tensor& y, const Tensor& sum, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias, double eps, const std::optional<Tensor>& residual,
                     NormKernel kernel) {
  Norm task{};
  task.storage = norm_storage(x), task.width = x.size(1), task.eps = eps;
  task.x = x.data_ptr(), task.y = like_x(y, x, "bad y"), task.weight = per_place(weight, x, "bad weight");
  if (bias) task.bias = per_place(*bias, x, "bad bias");
  if (residual) task.residual = like_x(*residual, x, "bad residual"), task.sum = like_x(sum, x, "bad sum");
  if (x.numel() == 0) return;
  prefer_huge_pages(task.y, x.numel() * x.element_size());
  if (residual) prefer_huge_pages(task.sum, x.numel() * x.element_size());
  parallel_for(0, x.size(0), std::max<int64_t>(1, kNormGrain / task.width),
               [&](int64_t first, int64_t last) { kernel(task, first, last); });
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

inline void run_norm_backward(const Tensor& grad_x, const Tensor& grad_weight, const Tensor* grad_bias,
                              const Tensor& grad, const Tensor& x, const Tensor& weight, double eps,
                              NormBackwardKernel kernel) {
  NormBackward task{};
  task.storage = norm_storage(x), task.rows = x.size(0), task.width = x.size(1), task.eps = eps;
  task.x = x.data_ptr(), task.grad = like_x(grad, x, "bad grad"),
  task.grad_x = like_x(grad_x, x, "bad grad_x");
  task.weight = per_place(weight, x, "bad weight");
  void* const weight_total = per_place(grad_weight, x, "bad grad_weight");
  void* const bias_total = grad_bias ? per_place(*grad_bias, x, "bad grad_bias") : nullptr;
  const bool wide = task.storage == Storage::float64;
  const size_t bytes = static_cast<size_t>(task.blocks() * task.width) * (wide ? 8 : 4);
  std::vector<char> of_weight(bytes), of_bias(grad_bias ? bytes : 0);
  task.grad_weight = of_weight.data(), task.grad_bias = of_bias.data();
  prefer_huge_pages(task.grad_x, x.numel() * x.element_size());
  if (task.width > 0)
    parallel_for(0, task.blocks(), 1, [&](int64_t first, int64_t last) { kernel(task, first, last); });
  const auto add = wide ? add_up<double> : add_up<float>;
  add(of_weight, task.blocks(), task.width, weight_total);
  if (grad_bias) add(of_bias, task.blocks(), task.width, bias_total);
}

}  // namespace fastgen

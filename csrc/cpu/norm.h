// What rms_norm and layer_norm are asked for.
#pragma once
#include <cstdint>

#include "storage.h"

namespace fastgen {

// y = weight (s - mean) / sqrt(mean((s - mean)^2) + eps) + bias of rows s = x + residual; mean = 0 in
// rms_norm. All contiguous.
struct Norm {
  Storage storage;  // of x, residual, sum and y
  int64_t width;    // numbers in a row
  double eps;
  const void *x, *residual;   // (rows, width); residual may be null
  const void *weight, *bias;  // (width,) float, or double for float64; bias may be null and is layer_norm's
  void *sum, *y;              // (rows, width); s goes to sum if there is a residual. They may be x.
};

// Gradients of x and, summed up over each block of rows, of weight and bias.
struct NormBackward {
  Storage storage;  // of x, grad and grad_x
  int64_t rows, width;
  double eps;
  const void *x, *grad;  // (rows, width), x being the sum of the forward pass
  const void* weight;
  void* grad_x;
  void *grad_weight, *grad_bias;  // (blocks, width) as weight, grad_bias of layer_norm alone

  static constexpr int64_t kBlock = 64;  // rows
  int64_t blocks() const { return (rows + kBlock - 1) / kBlock; }
};

}  // namespace fastgen

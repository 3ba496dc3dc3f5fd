// y = activation(x W^T + b) + residual, for blocks of rows and outputs.
#pragma once
#include <cstdint>

#include "isa.h"

namespace fastgen {

enum class Activation : int64_t {
  none,
  relu,
  leaky_relu,
  elu,
  gelu,
  gelu_tanh,
  silu,
  tanh,
  sigmoid,
  softplus,
  count
};

// All contiguous. x, bias, residual and y are double if `real_bytes` is 8, else float; so is the weight, or
// bfloat16 if `weight_bytes` is 2.
struct Linear {
  int64_t rows, inputs, outputs;
  const void *x, *weight, *bias, *residual;  // (rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)
  void* y;                                   // (rows, outputs)
  int64_t real_bytes, weight_bytes;
  Activation activation;

  // Blocks of outputs whose weights stay in the second cache, and of rows.
  int64_t output_block() const {
    const int64_t fitting = (int64_t{1} << 17) / (inputs * weight_bytes + 1) / 16 * 16;
    return fitting < 16 ? 16 : fitting > 512 ? 512 : fitting;
  }
  static constexpr int64_t row_block() { return 64; }
  int64_t output_blocks() const { return (outputs + output_block() - 1) / output_block(); }
  int64_t row_blocks() const { return (rows + row_block() - 1) / row_block(); }
};

// Blocks first .. last - 1 of output_blocks() * row_blocks(), rows running faster.
FASTGEN_DECLARE_KERNEL(void, linear, (const Linear& task, int64_t first, int64_t last))

}  // namespace fastgen

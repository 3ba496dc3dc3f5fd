#include "../cpu/linear.h"

#include <algorithm>
#include <optional>

#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 1 << 18;  // products that are worth a thread: some 5 us

const void* addend(const std::optional<Tensor>& t, ScalarType real, int64_t rows, int64_t outputs,
                   const char* what) {
  if (!t) return nullptr;
  require(t->is_contiguous() && t->scalar_type() == real && t->numel() == rows * outputs, what);
  return t->data_ptr();
}

// `activation` is a number of the enumeration.
void linear_out(Tensor y, Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t activation,
                std::optional<Tensor> residual) {
  const ScalarType real = y.scalar_type(), packed = weight.scalar_type();
  require(real == ScalarType::Float || real == ScalarType::Double, "bad y");
  require(packed == real || (real == ScalarType::Float && packed == ScalarType::BFloat16), "bad weight");
  require(weight.dim() == 2 && weight.is_contiguous(), "bad weight");
  require(x.dim() == 2 && x.is_contiguous() && x.scalar_type() == real && x.size(1) == weight.size(1),
          "bad x");
  require(y.dim() == 2 && y.is_contiguous() && y.size(0) == x.size(0) && y.size(1) == weight.size(0),
          "bad y");
  require(activation >= 0 && activation < static_cast<int64_t>(Activation::count), "bad activation");
  Linear task{};
  task.rows = x.size(0), task.inputs = x.size(1), task.outputs = weight.size(0);
  task.x = x.data_ptr(), task.weight = weight.data_ptr(), task.y = y.data_ptr();
  task.bias = addend(bias, real, 1, task.outputs, "bad bias");
  task.residual = addend(residual, real, task.rows, task.outputs, "bad residual");
  task.real_bytes = static_cast<int64_t>(y.element_size());
  task.weight_bytes = static_cast<int64_t>(weight.element_size());
  task.activation = static_cast<Activation>(activation);
  if (y.numel() == 0) return;
  const auto kernel = FASTGEN_KERNEL(linear);
  const int64_t unit = std::min(task.rows, task.row_block()) * std::min(task.outputs, task.output_block()) *
                       std::max<int64_t>(task.inputs, 1);
  parallel_for(0, task.row_blocks() * task.output_blocks(), std::max<int64_t>(kGrain / unit, 1),
               [&](int64_t first, int64_t last) { kernel(task, first, last); });
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "linear(Tensor(a!) y, Tensor x, Tensor weight, Tensor? bias, int activation, Tensor? residual) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) { m.impl("linear", TORCH_BOX(&fastgen::linear_out)); }

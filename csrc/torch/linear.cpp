#include "../cpu/linear.h"

#include <algorithm>
#include <optional>

#include "direct.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 1 << 18;  // products that are worth a thread: some 5 us

using Optional = std::optional<View>;

// All but y. `activation` is a number of the enumeration.
Linear task_of(const View& x, const View& weight, const Optional& bias, int64_t activation,
               const Optional& residual) {
  const ScalarType real = x.type;
  require(real == ScalarType::Float || real == ScalarType::Double, "bad x");
  require(weight.type == real || (real == ScalarType::Float && weight.type == ScalarType::BFloat16),
          "bad weight");
  require(weight.dims == 2 && weight.is_contiguous(), "bad weight");
  require(x.dims > 0 && x.is_contiguous() && x.last() == weight.size(1), "bad x");
  require(activation >= 0 && activation < static_cast<int64_t>(Activation::count), "bad activation");
  Linear task{};
  task.rows = x.rows(), task.inputs = x.last(), task.outputs = weight.size(0);
  task.x = x.memory, task.weight = weight.memory;
  if (bias) {
    require(bias->is(real) && bias->dims == 1 && bias->size(0) == task.outputs, "bad bias");
    task.bias = bias->memory;
  }
  if (residual) {
    require(residual->is(real) && residual->is_like(x, task.outputs), "bad residual");
    task.residual = residual->memory;
  }
  task.real_bytes = x.element_size, task.weight_bytes = weight.element_size;
  task.activation = static_cast<Activation>(activation);
  return task;
}

void run(const Linear& task) {
  if (task.rows == 0 || task.outputs == 0) return;
  const auto kernel = FASTGEN_KERNEL(linear);
  const int64_t unit = std::min(task.rows, task.row_block()) * std::min(task.outputs, task.output_block()) *
                       std::max<int64_t>(task.inputs, 1);
  parallel_for(0, task.row_blocks() * task.output_blocks(), std::max<int64_t>(kGrain / unit, 1),
               [&](int64_t first, int64_t last) { kernel(task, first, last); });
}

void linear_out(Tensor y, Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t activation,
                std::optional<Tensor> residual) {
  const View result(y), from(x);
  Linear task = task_of(from, weight, view(bias), activation, view(residual));
  require(result.is(from.type) && result.is_like(from, task.outputs), "bad y");
  task.y = result.memory;
  run(task);
}

PyObject* linear_direct(Arguments& given) {
  const View x = given.tensor(), weight = given.tensor();
  const Optional bias = given.maybe_tensor();
  const int64_t activation = given.integer();
  const Optional residual = given.maybe_tensor();
  if (!given.plain()) return nullptr;
  Linear task = task_of(x, weight, bias, activation, residual);
  Result y(x, task.outputs);
  task.y = y.memory();
  without_lock([&] { run(task); });
  return y.release();
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "linear(Tensor(a!) y, Tensor x, Tensor weight, Tensor? bias, int activation, Tensor? residual) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) { m.impl("linear", TORCH_BOX(&fastgen::linear_out)); }

FASTGEN_DIRECT(linear, fastgen::linear_direct)

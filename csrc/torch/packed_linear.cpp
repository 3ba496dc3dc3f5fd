#include "../cpu/packed_linear.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "direct.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 1 << 18;  // products that are worth a thread: some 5 us

using Optional = std::optional<View>;

const float* floats(const Optional& t, int64_t count, const char* what) {
  if (!t) return nullptr;
  require(t->is(ScalarType::Float) && t->dims == 1 && t->size(0) == count, what);
  return data<const float>(*t);
}

ScalarType stored_type(WeightFormat format) {
  return format == WeightFormat::float32    ? ScalarType::Float
         : format == WeightFormat::bfloat16 ? ScalarType::BFloat16
         : format == WeightFormat::int8     ? ScalarType::Char
                                            : ScalarType::Byte;
}

// All but y. `format` and `activation` are numbers of their enumerations.
PackedLinear task_of(const View& x, const View& weight, const Optional& scale, int64_t format,
                     int64_t outputs, const Optional& bias, int64_t activation, const Optional& residual) {
  require(x.dims > 0 && x.is(ScalarType::Float), "bad x");
  require(format >= 0 && format < static_cast<int64_t>(WeightFormat::count), "bad format");
  require(activation >= 0 && activation < static_cast<int64_t>(Activation::count), "bad activation");
  PackedLinear task{};
  task.rows = x.rows(), task.inputs = x.last(), task.outputs = outputs;
  task.format = static_cast<WeightFormat>(format);
  require(is_panelled(task.format) || task.inputs % kWeightBlock == 0, "bad x");
  const int64_t weights = is_panelled(task.format) ? task.panels() : task.outputs;
  require(weight.is(stored_type(task.format)) &&
              weight.numel() * weight.element_size == weights * weight_stride(task.format, task.inputs),
          "bad weight");
  require(scale.has_value() == (task.format == WeightFormat::int8), "bad scale");
  task.x = data<const float>(x), task.x_stride = task.inputs;
  task.weight = weight.memory, task.weight_scale = floats(scale, task.outputs, "bad scale");
  task.bias = floats(bias, task.outputs, "bad bias");
  if (residual) {
    require(residual->is(ScalarType::Float) && residual->is_like(x, outputs), "bad residual");
    task.residual = data<const float>(*residual);
  }
  task.residual_stride = task.y_stride = task.outputs;
  task.activation = static_cast<Activation>(activation);
  return task;
}

void run(PackedLinear task) {
  if (task.rows == 0 || task.outputs == 0) return;
  std::unique_ptr<QuantizedGroup[]> groups;
  std::unique_ptr<ByteBlock[]> blocks;
  const int64_t grain = kGrain / (32 * task.inputs + 1) + 1;
  if (!is_panelled(task.format)) {
    groups.reset(new QuantizedGroup[task.rows * quantized_groups(task.inputs)]);
    task.quantized = groups.get();
    const auto quantize = FASTGEN_KERNEL(quantize_rows);
    parallel_for(0, task.rows, grain, [&](int64_t first, int64_t last) {
      quantize(task.x, task.x_stride, task.inputs, groups.get(), first, last);
    });
  } else if (task.format == WeightFormat::int8) {
    blocks.reset(new ByteBlock[task.rows * byte_blocks(task.inputs)]);
    task.bytes = blocks.get();
    const auto round = FASTGEN_KERNEL(round_rows);
    parallel_for(0, task.rows, grain, [&](int64_t first, int64_t last) {
      round(task.x, task.x_stride, task.inputs, blocks.get(), first, last);
    });
  }
  const auto kernel = FASTGEN_KERNEL(packed_linear);
  const int64_t unit = std::min<int64_t>(task.rows, 96) * kPanel * std::max<int64_t>(task.inputs, 1);
  parallel_for(0, task.units(), std::max<int64_t>(kGrain / unit, 1), [&](int64_t first, int64_t last) {
    PackedLinear part = task;
    const std::unique_ptr<PanelBlock[]> unpacked(is_panelled(task.format) || task.rows <= kFewRows
                                                     ? nullptr
                                                     : new PanelBlock[byte_blocks(task.inputs)]);
    part.unpacked = unpacked.get();
    kernel(part, first, last);
  });
}

void packed_linear_out(Tensor y, Tensor x, Tensor weight, std::optional<Tensor> scale, int64_t format,
                       std::optional<Tensor> bias, int64_t activation, std::optional<Tensor> residual) {
  const View result(y), from(x);
  require(result.dims == 2 && result.is(ScalarType::Float), "bad y");
  PackedLinear task =
      task_of(from, weight, view(scale), format, result.size(1), view(bias), activation, view(residual));
  require(result.is_like(from, task.outputs), "bad y");
  task.y = data<float>(result);
  run(task);
}

PyObject* packed_linear_direct(Arguments& given) {
  const View x = given.tensor(), weight = given.tensor();
  const Optional scale = given.maybe_tensor();
  const int64_t format = given.integer(), outputs = given.integer(), inputs = given.integer();
  const Optional bias = given.maybe_tensor();
  const int64_t activation = given.integer();
  const Optional residual = given.maybe_tensor();
  if (!given.plain()) return nullptr;
  PackedLinear task = task_of(x, weight, scale, format, outputs, bias, activation, residual);
  require(task.inputs == inputs, "bad x");
  Result y(x, outputs);
  task.y = static_cast<float*>(y.memory());
  without_lock([&] { run(task); });
  return y.release();
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "packed_linear(Tensor(a!) y, Tensor x, Tensor weight, Tensor? scale, int format, Tensor? bias, "
      "int activation, Tensor? residual) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("packed_linear", TORCH_BOX(&fastgen::packed_linear_out));
}

FASTGEN_DIRECT(packed_linear, fastgen::packed_linear_direct)

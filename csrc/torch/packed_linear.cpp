#include "../cpu/packed_linear.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 1 << 18;  // products that are worth a thread: some 5 us

const float* floats(const std::optional<Tensor>& t, int64_t count, const char* what) {
  if (!t) return nullptr;
  require(t->is_contiguous() && t->scalar_type() == ScalarType::Float && t->numel() == count, what);
  return data<const float>(*t);
}

ScalarType stored_type(WeightFormat format) {
  return format == WeightFormat::float32    ? ScalarType::Float
         : format == WeightFormat::bfloat16 ? ScalarType::BFloat16
         : format == WeightFormat::int8     ? ScalarType::Char
                                            : ScalarType::Byte;
}

bool is_matrix(const Tensor& t) {
  return t.dim() == 2 && t.is_contiguous() && t.scalar_type() == ScalarType::Float;
}

// `format` and `activation` are numbers of their enumerations.
void packed_linear_out(Tensor y, Tensor x, Tensor weight, std::optional<Tensor> scale, int64_t format,
                       std::optional<Tensor> bias, int64_t activation, std::optional<Tensor> residual) {
  require(is_matrix(x), "bad x");
  require(is_matrix(y) && y.size(0) == x.size(0), "bad y");
  require(format >= 0 && format < static_cast<int64_t>(WeightFormat::count), "bad format");
  require(activation >= 0 && activation < static_cast<int64_t>(Activation::count), "bad activation");
  PackedLinear task{};
  task.rows = x.size(0), task.inputs = x.size(1), task.outputs = y.size(1);
  task.format = static_cast<WeightFormat>(format);
  require(is_panelled(task.format) || task.inputs % kWeightBlock == 0, "bad x");
  const int64_t weights = is_panelled(task.format) ? task.panels() : task.outputs;
  require(weight.is_contiguous() && weight.scalar_type() == stored_type(task.format) &&
              weight.numel() * static_cast<int64_t>(weight.element_size()) ==
                  weights * weight_stride(task.format, task.inputs),
          "bad weight");
  require(scale.has_value() == (task.format == WeightFormat::int8), "bad scale");
  task.x = data<const float>(x), task.x_stride = task.inputs;
  task.weight = weight.data_ptr(), task.weight_scale = floats(scale, task.outputs, "bad scale");
  task.bias = floats(bias, task.outputs, "bad bias");
  task.residual = floats(residual, task.rows * task.outputs, "bad residual");
  task.y = data<float>(y);
  task.residual_stride = task.y_stride = task.outputs;
  task.activation = static_cast<Activation>(activation);
  if (y.numel() == 0) return;

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
    const std::unique_ptr<PanelBlock[]> unpacked(
        is_panelled(task.format) ? nullptr : new PanelBlock[byte_blocks(task.inputs)]);
    part.unpacked = unpacked.get();
    kernel(part, first, last);
  });
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

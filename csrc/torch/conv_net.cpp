#include "../cpu/conv_net.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 1 << 16;         // weights that are worth a thread
constexpr int64_t kLeastRows = 4;           // of a band: those above and below are computed twice
constexpr int64_t kLargeScratch = 1 << 20;  // numbers of a unit that is better cut into bands

ConvLayer layer_of(const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& x, int64_t inputs) {
  ConvLayer layer{};
  require(weight.dim() == 4 && weight.scalar_type() == x.scalar_type() && weight.size(1) == inputs,
          "bad weight");
  layer.outputs = weight.size(0), layer.inputs = inputs, layer.side = weight.size(2);
  require((layer.side == 1 || layer.side == 3) && weight.size(3) == layer.side, "bad weight");
  layer.weight = weight.data_ptr();
  layer.output_stride = weight.stride(0), layer.input_stride = weight.stride(1);
  layer.row_stride = weight.stride(2), layer.column_stride = weight.stride(3);
  require(layer.input_stride == 1 || weight.is_contiguous(), "bad weight");
  if (!bias) return layer;
  require(bias->is_contiguous() && bias->scalar_type() == x.scalar_type(), "bad bias");
  const bool of_images = bias->dim() == 2 && bias->size(0) == x.size(0) && bias->size(1) == layer.outputs;
  require(of_images || (bias->dim() == 1 && bias->size(0) == layer.outputs), "bad bias");
  layer.bias = bias->data_ptr(), layer.bias_stride = of_images ? layer.outputs : 0;
  return layer;
}

// As many bands as give every thread some work, and no more than that unless they are large.
void set_bands(ConvNet& task) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = (threads + task.images - 1) / task.images;
  task.band_rows = std::max((task.height + wanted - 1) / wanted, std::min(kLeastRows, task.height));
  while (task.scratch_size() > kLargeScratch && task.band_rows > 2 * kLeastRows)
    task.band_rows = (task.band_rows + 1) / 2;
}

void pack(const ConvNet& task) {
  const auto kernel = FASTGEN_KERNEL(pack_conv_net);
  for (const ConvLayer& layer : task.layers) {
    const int64_t panel = std::max<int64_t>(layer.packed_size() / layer.panels(), 1);
    parallel_for(0, layer.panels(), std::max<int64_t>(kGrain / panel, 1),
                 [&](int64_t first, int64_t last) { kernel(layer, task.float64, first, last); });
  }
}

template <class S>
void run(ConvNet& task) {
  int64_t size = 0;
  for (const ConvLayer& layer : task.layers) size += layer.packed_size();
  const std::unique_ptr<S[]> packed(new S[size]);
  S* next = packed.get();
  for (ConvLayer& layer : task.layers) layer.packed = next, next += layer.packed_size();
  pack(task);
  set_bands(task);
  const auto kernel = FASTGEN_KERNEL(conv_net);
  parallel_for(0, task.units(), 1, [&](int64_t first, int64_t last) {
    const std::unique_ptr<S[]> scratch(new S[task.scratch_size()]);
    kernel(task, scratch.get(), first, last);
  });
}

// x (N, H, W, C) if channels_last, else (N, C, H, W), in any strides; y the same with other channels.
void conv_net_out(Tensor y, Tensor x, Tensor first, std::optional<Tensor> first_bias, Tensor second,
                  std::optional<Tensor> second_bias, Tensor third, std::optional<Tensor> third_bias,
                  double slope, bool channels_last) {
  ConvNet task{};
  require(x.dim() == 4 && y.dim() == 4 && y.is_contiguous() && y.scalar_type() == x.scalar_type(), "bad y");
  task.float64 = x.scalar_type() == ScalarType::Double;
  require(task.float64 || x.scalar_type() == ScalarType::Float, "bad x");
  const int channel = channels_last ? 3 : 1, row = channels_last ? 1 : 2, column = channels_last ? 2 : 3;
  task.channels_last = channels_last, task.slope = slope;
  task.images = x.size(0), task.height = x.size(row), task.width = x.size(column);
  task.image_stride = x.stride(0), task.channel_stride = x.stride(channel);
  task.row_stride = x.stride(row), task.column_stride = x.stride(column);
  task.x = x.data_ptr(), task.y = y.data_ptr();
  task.layers[0] = layer_of(first, first_bias, x, x.size(channel));
  task.layers[1] = layer_of(second, second_bias, x, task.layers[0].outputs);
  task.layers[2] = layer_of(third, third_bias, x, task.layers[1].outputs);
  require(y.size(0) == task.images && y.size(row) == task.height && y.size(column) == task.width &&
              y.size(channel) == task.layers[2].outputs,
          "bad y");
  if (y.numel() == 0) return;
  task.float64 ? run<double>(task) : run<float>(task);
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "conv_net(Tensor(a!) y, Tensor x, Tensor first, Tensor? first_bias, Tensor second, "
      "Tensor? second_bias, Tensor third, Tensor? third_bias, float slope, bool channels_last) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) { m.impl("conv_net", TORCH_BOX(&fastgen::conv_net_out)); }

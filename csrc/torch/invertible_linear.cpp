#include "../cpu/invertible_linear.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 1 << 18;  // multiplications: some 10 us of work for a thread

const void* memory(const Tensor& t, const Tensor& x, int64_t count, const char* what) {
  require(t.is_contiguous() && t.scalar_type() == x.scalar_type() && t.numel() == count, what);
  return t.data_ptr();
}

// What the kernel reads besides x: the weight as it is, or transposed and padded, and a bias.
template <class S>
struct Operands {
  std::vector<S> weight, bias;

  Operands(InvertibleLinear& task, const S* given, const S* given_bias) {
    const int64_t channels = task.channels, padded = task.padded();
    bias.assign(padded, S{});
    if (given_bias) std::copy_n(given_bias, channels, bias.begin());
    task.weight = given, task.bias = bias.data();
    if (!task.channels_last) return;
    weight.assign(channels * padded, S{});
    for (int64_t o = 0; o < channels; ++o)
      for (int64_t i = 0; i < channels; ++i) weight[i * padded + o] = given[o * channels + i];
    task.weight = weight.data();
  }
};

template <class S>
void run(InvertibleLinear task, const void* weight, const void* bias) {
  const Operands<S> operands(task, static_cast<const S*>(weight), static_cast<const S*>(bias));
  const int64_t cost = task.kTile * task.channels * task.channels;
  const auto kernel = FASTGEN_KERNEL(invertible_linear);
  parallel_for(0, task.tiles(), std::max<int64_t>(1, kGrain / cost),
               [&](int64_t first, int64_t last) { kernel(task, first, last); });
}

void invertible_linear_out(Tensor y, Tensor x, Tensor weight, std::optional<Tensor> bias,
                           bool channels_last) {
  InvertibleLinear task{};
  require(x.dim() == 3, "bad x");
  task.float64 = x.scalar_type() == ScalarType::Double;
  require(task.float64 || x.scalar_type() == ScalarType::Float, "bad x");
  task.images = x.size(0), task.channels = x.size(channels_last ? 2 : 1),
  task.pixels = x.size(channels_last ? 1 : 2), task.channels_last = channels_last;
  if (x.numel() == 0) return;
  task.x = memory(x, x, x.numel(), "bad x");
  task.y = const_cast<void*>(memory(y, x, x.numel(), "bad y"));
  const void* matrix = memory(weight, x, task.channels * task.channels, "bad weight");
  const void* offset = bias ? memory(*bias, x, task.channels, "bad bias") : nullptr;
  prefer_huge_pages(task.y, x.numel() * x.element_size());
  task.float64 ? run<double>(task, matrix, offset) : run<float>(task, matrix, offset);
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def("invertible_linear(Tensor(a!) y, Tensor x, Tensor weight, Tensor? bias, bool channels_last) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("invertible_linear", TORCH_BOX(&fastgen::invertible_linear_out));
}

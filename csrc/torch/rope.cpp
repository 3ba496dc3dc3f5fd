#include "../cpu/rope.h"

#include <algorithm>

#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 1 << 14;  // numbers that are worth a thread: some 5 us

void rope_out(Tensor y, Tensor x, Tensor cos, Tensor sin, bool interleaved) {
  const ScalarType kept = x.scalar_type(), real = kept == ScalarType::Double ? kept : ScalarType::Float;
  require(kept == ScalarType::Float || kept == ScalarType::BFloat16 || kept == ScalarType::Double, "bad x");
  require(x.dim() == 4 && x.is_contiguous() && x.size(3) % 2 == 0, "bad x");
  require(y.is_contiguous() && y.scalar_type() == kept && y.numel() == x.numel(), "bad y");
  const int64_t angles = x.size(1) * (x.size(3) / 2);
  require(cos.is_contiguous() && cos.scalar_type() == real && cos.numel() == angles, "bad cos");
  require(sin.is_contiguous() && sin.scalar_type() == real && sin.numel() == angles, "bad sin");
  Rope task{};
  task.storage = kept == ScalarType::Double     ? Storage::float64
                 : kept == ScalarType::BFloat16 ? Storage::bfloat16
                                                : Storage::float32;
  task.positions = x.size(1), task.heads = x.size(2), task.size = x.size(3), task.interleaved = interleaved;
  task.x = x.data_ptr(), task.cos = cos.data_ptr(), task.sin = sin.data_ptr(), task.y = y.data_ptr();
  if (x.numel() == 0) return;
  prefer_huge_pages(task.y, x.numel() * x.element_size());
  const auto kernel = FASTGEN_KERNEL(rope);
  parallel_for(0, x.size(0) * x.size(1), std::max<int64_t>(1, kGrain / (task.heads * task.size)),
               [&](int64_t first, int64_t last) { kernel(task, first, last); });
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def("rope(Tensor(a!) y, Tensor x, Tensor cos, Tensor sin, bool interleaved) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) { m.impl("rope", TORCH_BOX(&fastgen::rope_out)); }

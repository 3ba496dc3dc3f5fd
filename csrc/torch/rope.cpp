#include "../cpu/rope.h"

#include <algorithm>

#include "direct.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 1 << 14;  // numbers that are worth a thread: some 5 us

// All but y.
Rope task_of(const View& x, const View& cos, const View& sin, bool interleaved) {
  const ScalarType kept = x.type, real = kept == ScalarType::Double ? kept : ScalarType::Float;
  require(kept == ScalarType::Float || kept == ScalarType::BFloat16 || kept == ScalarType::Double, "bad x");
  require(x.dims >= 3 && x.is_contiguous() && x.last() % 2 == 0, "bad x");
  Rope task{};
  task.positions = x.size(x.dims - 3), task.heads = x.size(x.dims - 2), task.size = x.last();
  const auto is_angles = [&](const View& t) {
    return t.is(real) && t.dims == 2 && t.size(0) == task.positions && t.size(1) == task.size / 2;
  };
  require(is_angles(cos), "bad cos");
  require(is_angles(sin), "bad sin");
  task.storage = kept == ScalarType::Double     ? Storage::float64
                 : kept == ScalarType::BFloat16 ? Storage::bfloat16
                                                : Storage::float32;
  task.interleaved = interleaved;
  task.x = x.memory, task.cos = cos.memory, task.sin = sin.memory;
  return task;
}

void run(const Rope& task, const View& x) {
  const int64_t numbers = x.numel(), head_numbers = task.heads * task.size;
  if (numbers == 0) return;
  prefer_huge_pages(task.y, numbers * x.element_size);
  const auto kernel = FASTGEN_KERNEL(rope);
  parallel_for(0, numbers / head_numbers, std::max<int64_t>(1, kGrain / head_numbers),
               [&](int64_t first, int64_t last) { kernel(task, first, last); });
}

void rope_out(Tensor y, Tensor x, Tensor cos, Tensor sin, bool interleaved) {
  const View result(y), from(x);
  Rope task = task_of(from, cos, sin, interleaved);
  require(result.is(from.type) && result.is_like(from, task.size), "bad y");
  task.y = result.memory;
  run(task, from);
}

PyObject* rope_direct(Arguments& given) {
  const View x = given.tensor(), cos = given.tensor(), sin = given.tensor();
  const bool interleaved = given.flag();
  if (!given.plain()) return nullptr;
  Rope task = task_of(x, cos, sin, interleaved);
  Result y(x, task.size);
  task.y = y.memory();
  without_lock([&] { run(task, x); });
  return y.release();
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def("rope(Tensor(a!) y, Tensor x, Tensor cos, Tensor sin, bool interleaved) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) { m.impl("rope", TORCH_BOX(&fastgen::rope_out)); }

FASTGEN_DIRECT(rope, fastgen::rope_direct)

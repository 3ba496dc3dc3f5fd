#include "../cpu/affine_coupling.h"

#include <algorithm>
#include <optional>

#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 1 << 13;   // elements: some 10 us of work for a thread
constexpr int64_t kCaches = 1 << 25;  // bytes; of what is read and written beyond that, little is left there

Storage storage_of(const Tensor& x) {
  if (x.scalar_type() == ScalarType::Double) return Storage::float64;
  if (x.scalar_type() == ScalarType::BFloat16) return Storage::bfloat16;
  require(x.scalar_type() == ScalarType::Float, "bad x");
  return Storage::float32;
}

void* memory(const Tensor& t, const Tensor& x, int64_t count, const char* what) {
  require(t.is_contiguous() && t.scalar_type() == x.scalar_type() && t.numel() == count, what);
  return t.data_ptr();
}

AffineCoupling task_of(const Tensor& x, const Tensor& params, const std::optional<Tensor>& mask,
                       int64_t begin, int64_t run, int64_t map, bool shift_first, double clamp,
                       double min_scale, bool inverse) {
  AffineCoupling task{};
  const int64_t rows = x.size(0);
  task.storage = storage_of(x);
  require(map >= 0 && map < kScaleMaps, "bad scale_map");
  task.map = static_cast<ScaleMap>(map), task.clamp = clamp, task.min_scale = min_scale,
  task.inverse = inverse;
  task.width = rows ? x.numel() / rows : 0, task.count = rows ? params.numel() / rows / 2 : 0;
  task.begin = begin, task.run = run, task.shift_first = shift_first;
  require(begin >= 0 && begin <= task.width - task.count && run > 0 && task.count % run == 0, "bad params");
  task.x = memory(x, x, rows * task.width, "bad x");
  task.params = memory(params, x, 2 * rows * task.count, "bad params");
  if (mask) {
    require(mask->scalar_type() == ScalarType::Bool && mask->is_contiguous() && mask->numel() == task.count,
            "bad mask");
    task.mask = data<uint8_t>(*mask);
  }
  return task;
}

bool goes_past_caches(const AffineCoupling& task, int64_t rows, int64_t element_size) {
  constexpr int64_t kVector = 64;  // bytes, the largest
  const int64_t row = task.width * element_size, start = task.begin * element_size;
  const int64_t run = task.run == 1 ? 0 : task.run * element_size;
  const bool aligned = (reinterpret_cast<uintptr_t>(task.y) | row | start | run) % kVector == 0;
  return aligned && task.y != task.x && rows * 4 * row > kCaches;
}

using Kernel = void (*)(const AffineCoupling&, int64_t, int64_t);

void run(const AffineCoupling& task, int64_t rows, Kernel kernel) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, task.width));
  parallel_for(0, rows, grain, [&](int64_t first, int64_t last) { kernel(task, first, last); });
}

void affine_coupling_out(Tensor y, Tensor log_det, Tensor x, Tensor params, std::optional<Tensor> mask,
                         int64_t begin, int64_t run_length, int64_t map, bool shift_first, double clamp,
                         double min_scale, bool inverse) {
  const int64_t rows = x.size(0);
  if (rows == 0) return;
  AffineCoupling task =
      task_of(x, params, mask, begin, run_length, map, shift_first, clamp, min_scale, inverse);
  task.y = memory(y, x, x.numel(), "bad y"), task.log_det = memory(log_det, x, rows, "bad log_det");
  if (task.y != task.x) prefer_huge_pages(task.y, x.numel() * x.element_size());
  task.past_caches = goes_past_caches(task, rows, x.element_size());
  run(task, rows, FASTGEN_KERNEL(affine_coupling));
}

void affine_coupling_backward_out(Tensor grad_x, Tensor grad_params, Tensor grad_y, Tensor grad_log_det,
                                  Tensor x, Tensor params, std::optional<Tensor> mask, int64_t begin,
                                  int64_t run_length, int64_t map, bool shift_first, double clamp,
                                  double min_scale, bool inverse) {
  const int64_t rows = x.size(0);
  if (rows == 0) return;
  AffineCoupling task =
      task_of(x, params, mask, begin, run_length, map, shift_first, clamp, min_scale, inverse);
  task.grad_y = memory(grad_y, x, x.numel(), "bad grad_y");
  task.grad_log_det = memory(grad_log_det, x, rows, "bad grad_log_det");
  task.grad_x = memory(grad_x, x, x.numel(), "bad grad_x");
  task.grad_params = memory(grad_params, x, params.numel(), "bad grad_params");
  prefer_huge_pages(task.grad_x, x.numel() * x.element_size());
  prefer_huge_pages(task.grad_params, params.numel() * x.element_size());
  run(task, rows, FASTGEN_KERNEL(affine_coupling_backward));
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "affine_coupling(Tensor(a!) y, Tensor(b!) log_det, Tensor x, Tensor params, Tensor? mask, int begin, "
      "int run, int scale_map, bool shift_first, float clamp, float min_scale, bool inverse) -> ()");
  m.def(
      "affine_coupling_backward(Tensor(a!) grad_x, Tensor(b!) grad_params, Tensor grad_y, "
      "Tensor grad_log_det, Tensor x, Tensor params, Tensor? mask, int begin, int run, int scale_map, "
      "bool shift_first, float clamp, float min_scale, bool inverse) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("affine_coupling", TORCH_BOX(&fastgen::affine_coupling_out));
  m.impl("affine_coupling_backward", TORCH_BOX(&fastgen::affine_coupling_backward_out));
}

#include "../cpu/rq_spline.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 2048;  // elements that are worth another thread

void* memory_of(const Tensor& t, const Tensor& x, std::initializer_list<int64_t> shape, const char* what) {
  bool fits = t.is_contiguous() && t.scalar_type() == x.scalar_type() &&
              t.dim() == static_cast<int64_t>(shape.size());
  for (int64_t i = 0; fits && i < t.dim(); ++i) fits = t.size(i) == shape.begin()[i];
  require(fits, what);
  return t.data_ptr();
}

SplineTails tails_from(const std::string& name) {
  require(name == "linear" || name == "circular" || name == "none", "bad tails");
  return name == "linear" ? SplineTails::linear : name == "none" ? SplineTails::none : SplineTails::circular;
}

struct Options {
  int64_t bins;
  bool inverse;
  const std::string& tails;
  double left, right, bottom, top, min_width, min_height, min_derivative, scale;
  bool softclip, sum_log_det;
};

RqSpline task_of(const Tensor& x, const Tensor& params, const Options& o) {
  require(x.dim() == 2 && o.bins >= 1, "bad x or bins");
  require(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "bad x");
  RqSpline task{};
  task.rows = x.size(0), task.width = x.size(1), task.bins = o.bins;
  task.tails = tails_from(o.tails);
  const int64_t more = task.tails == SplineTails::linear ? -1 : task.tails == SplineTails::none ? 1 : 0;
  task.parameters = 3 * o.bins + more;
  task.left = o.left, task.right = o.right, task.bottom = o.bottom, task.top = o.top;
  task.min_width = o.min_width, task.min_height = o.min_height, task.min_derivative = o.min_derivative;
  task.scale = o.scale, task.softclip = o.softclip, task.inverse = o.inverse;
  task.clip = -std::log(o.min_derivative), task.sum_log_det = o.sum_log_det,
  task.float64 = x.scalar_type() == ScalarType::Double;
  task.x = memory_of(x, x, {task.rows, task.width}, "bad x");
  task.params = memory_of(params, x, {task.rows, task.width, task.parameters}, "bad params");
  return task;
}

void* log_det_of(const RqSpline& task, const Tensor& log_det, const Tensor& x) {
  if (task.sum_log_det) return memory_of(log_det, x, {task.rows}, "bad log_det");
  return memory_of(log_det, x, {task.rows, task.width}, "bad log_det");
}

template <class Kernel>
void run(const RqSpline& task, Kernel kernel) {
  const int64_t grain = std::max(kGrain / std::max(task.width, int64_t{1}), int64_t{1});
  parallel_for(0, task.rows, grain, [&](int64_t first, int64_t last) { kernel(task, first, last); });
}

void rq_spline_out(Tensor y, Tensor log_det, Tensor x, Tensor params, int64_t bins, bool inverse,
                   std::string tails, double left, double right, double bottom, double top, double min_width,
                   double min_height, double min_derivative, double scale, bool softclip, bool sum_log_det) {
  RqSpline task = task_of(x, params,
                          {bins, inverse, tails, left, right, bottom, top, min_width, min_height,
                           min_derivative, scale, softclip, sum_log_det});
  task.y = memory_of(y, x, {task.rows, task.width}, "bad y");
  task.log_det = log_det_of(task, log_det, x);
  run(task, FASTGEN_KERNEL(rq_spline));
}

void rq_spline_backward_out(Tensor grad_x, Tensor grad_params, Tensor grad_y, Tensor grad_log_det, Tensor x,
                            Tensor params, int64_t bins, bool inverse, std::string tails, double left,
                            double right, double bottom, double top, double min_width, double min_height,
                            double min_derivative, double scale, bool softclip, bool sum_log_det) {
  RqSpline task = task_of(x, params,
                          {bins, inverse, tails, left, right, bottom, top, min_width, min_height,
                           min_derivative, scale, softclip, sum_log_det});
  task.grad_x = memory_of(grad_x, x, {task.rows, task.width}, "bad grad_x");
  task.grad_params = memory_of(grad_params, x, {task.rows, task.width, task.parameters}, "bad grad_params");
  task.grad_y = memory_of(grad_y, x, {task.rows, task.width}, "bad grad_y");
  task.grad_log_det = log_det_of(task, grad_log_det, x);
  prefer_huge_pages(task.grad_params, grad_params.numel() * grad_params.element_size());
  run(task, FASTGEN_KERNEL(rq_spline_backward));
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "rq_spline(Tensor(a!) y, Tensor(b!) log_det, Tensor x, Tensor params, int bins, bool inverse, str "
      "tails,"
      " float left, float right, float bottom, float top, float min_width, float min_height,"
      " float min_derivative, float scale, bool softclip, bool sum_log_det) -> ()");
  m.def(
      "rq_spline_backward(Tensor(a!) grad_x, Tensor(b!) grad_params, Tensor grad_y, Tensor grad_log_det,"
      " Tensor x, Tensor params, int bins, bool inverse, str tails, float left, float right, float bottom,"
      " float top, float min_width, float min_height, float min_derivative, float scale, bool softclip,"
      " bool sum_log_det) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("rq_spline", TORCH_BOX(&fastgen::rq_spline_out));
  m.impl("rq_spline_backward", TORCH_BOX(&fastgen::rq_spline_backward_out));
}

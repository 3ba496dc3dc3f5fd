// Rational-quadratic splines of rows of elements, and their gradients, from packed raw parameters.
#pragma once
#include <cstdint>

#include "isa.h"

namespace fastgen {

enum class SplineTails { linear, circular, none };

// x, y and their gradients are (rows, width), params and its gradient (rows, width, parameters), log_det and
// its gradient (rows) or, where it is not summed, (rows, width): float, or double where float64 is set.
struct RqSpline {
  int64_t rows, width, bins, parameters;
  double left, right, bottom, top;
  double min_width, min_height, min_derivative, scale;
  double clip;  // of raw derivatives, and twice that of raw widths and heights, where softclip is set
  SplineTails tails;
  bool float64, inverse, softclip, sum_log_det;
  const void *x, *params, *grad_y, *grad_log_det;
  void *y, *log_det;           // of the forward pass
  void *grad_x, *grad_params;  // of the backward pass
};

FASTGEN_DECLARE_KERNEL(void, rq_spline, (const RqSpline& task, int64_t first_row, int64_t last_row))
FASTGEN_DECLARE_KERNEL(void, rq_spline_backward, (const RqSpline& task, int64_t first_row, int64_t last_row))

}  // namespace fastgen

// y = scale(raw) x + shift and the sums of its log-determinant, row by row, and the gradients.
#pragma once
#include <cstdint>

#include "isa.h"
#include "storage.h"

namespace fastgen {

// In the order of SCALE_MAPS of fastgen/reference/affine_coupling.py.
enum class ScaleMap { exp, tanh, atan, softclip, sigmoid, softplus, reciprocal_sigmoid };
constexpr int kScaleMaps = 7;

struct AffineCoupling {
  Storage storage;  // of all numbers
  ScaleMap map;
  double clamp, min_scale;
  bool inverse;
  int64_t width;         // elements in a row of x
  int64_t begin, count;  // which of them are transformed; those around pass
  // A row of parameters is `run` numbers of one kind, then `run` of the other, then again: 2 count in all.
  int64_t run;
  bool shift_first;
  const uint8_t* mask;  // (count): elements that pass nevertheless; or null
  const void *x, *params;
  void *y, *log_det;  // y may be x
  bool past_caches;   // y is not read again soon, and its rows begin where a vector may be stored so
  // Of the backward pass, where y and log_det are not used.
  const void *grad_y, *grad_log_det;
  void *grad_x, *grad_params;
};

FASTGEN_DECLARE_KERNEL(void, affine_coupling,
                       (const AffineCoupling& task, int64_t first_row, int64_t last_row))
FASTGEN_DECLARE_KERNEL(void, affine_coupling_backward,
                       (const AffineCoupling& task, int64_t first_row, int64_t last_row))

}  // namespace fastgen

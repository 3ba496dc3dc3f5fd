#include "../cpu/rms_norm.h"

#include "norm_binding.h"

namespace fastgen {
namespace {

void rms_norm_out(Tensor y, Tensor sum, Tensor x, Tensor weight, double eps, std::optional<Tensor> residual) {
  norm_out(y, sum, x, weight, std::nullopt, eps, view(residual), FASTGEN_KERNEL(rms_norm));
}

PyObject* rms_norm_direct(Arguments& given) { return norm_direct(given, false, FASTGEN_KERNEL(rms_norm)); }

void rms_norm_backward_out(Tensor grad_x, Tensor grad_weight, Tensor grad, Tensor x, Tensor weight,
                           double eps) {
  run_norm_backward(grad_x, grad_weight, nullptr, grad, x, weight, eps, FASTGEN_KERNEL(rms_norm_backward));
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def("rms_norm(Tensor(a!) y, Tensor(b!) sum, Tensor x, Tensor weight, float eps, Tensor? residual) -> ()");
  m.def(
      "rms_norm_backward(Tensor(a!) grad_x, Tensor(b!) grad_weight, Tensor grad, Tensor x, Tensor weight, "
      "float eps) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&fastgen::rms_norm_out));
  m.impl("rms_norm_backward", TORCH_BOX(&fastgen::rms_norm_backward_out));
}

FASTGEN_DIRECT(rms_norm, fastgen::rms_norm_direct)

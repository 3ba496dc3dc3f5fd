#include "../cpu/layer_norm.h"

#include "norm_binding.h"

namespace fastgen {
namespace {

void layer_norm_out(Tensor y, Tensor sum, Tensor x, Tensor weight, std::optional<Tensor> bias, double eps,
                    std::optional<Tensor> residual) {
  norm_out(y, sum, x, weight, view(bias), eps, view(residual), FASTGEN_KERNEL(layer_norm));
}

PyObject* layer_norm_direct(Arguments& given) { return norm_direct(given, true, FASTGEN_KERNEL(layer_norm)); }

void layer_norm_backward_out(Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad, Tensor x,
                             Tensor weight, double eps) {
  const View of_bias(grad_bias);
  run_norm_backward(grad_x, grad_weight, &of_bias, grad, x, weight, eps, FASTGEN_KERNEL(layer_norm_backward));
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "layer_norm(Tensor(a!) y, Tensor(b!) sum, Tensor x, Tensor weight, Tensor? bias, float eps, "
      "Tensor? residual) -> ()");
  m.def(
      "layer_norm_backward(Tensor(a!) grad_x, Tensor(b!) grad_weight, Tensor(c!) grad_bias, Tensor grad, "
      "Tensor x, Tensor weight, float eps) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&fastgen::layer_norm_out));
  m.impl("layer_norm_backward", TORCH_BOX(&fastgen::layer_norm_backward_out));
}

FASTGEN_DIRECT(layer_norm, fastgen::layer_norm_direct)

#include "../cpu/layer_norm.h"

#include "norm_binding.h"

namespace fastgen {
namespace {

void layer_norm_out(Tensor y, Tensor sum, Tensor x, Tensor weight, std::optional<Tensor> bias, double eps,
                    std::optional<Tensor> residual) {
  run_norm(y, sum, x, weight, bias, eps, residual, FASTGEN_KERNEL(layer_norm));
}

void layer_norm_backward_out(Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad, Tensor x,
                             Tensor weight, double eps) {
  run_norm_backward(grad_x, grad_weight, &grad_bias, grad, x, weight, eps,
                    FASTGEN_KERNEL(layer_norm_backward));
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

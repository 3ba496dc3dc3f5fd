"""The specification of `fastgen.ops.layer_norm` in plain PyTorch; its gradients are autograd's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `fastgen.ops.layer_norm`; without a residual the sum is empty. float32 inside, or float64."""
    total = x if residual is None else x + residual
    y = F.layer_norm(total.to(weight.dtype), weight.shape, weight, bias, eps)
    return y.to(x.dtype), x.new_empty(0) if residual is None else total


def layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, given that of y; x is the sum where there was a residual."""
    grad_x, grad_weight, grad_bias = gradients(
        lambda x, weight, bias: layer_norm(x, weight, bias, eps, None)[0],
        grad, x, weight, torch.zeros_like(weight),
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def gradients(function: Callable[..., Tensor], grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the inputs, given that of what `function(*inputs)` returns."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [x.clone().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad.clone())

"""The specification of `fastgen.ops.rms_norm` in plain PyTorch; its gradients are autograd's."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.reference.layer_norm import gradients


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `fastgen.ops.rms_norm`; without a residual the sum is empty. float32 inside, or float64."""
    total = x if residual is None else x + residual
    wide = total.to(weight.dtype)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype), x.new_empty(0) if residual is None else total


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight, given that of y; x is the sum where there was a residual."""
    grad_x, grad_weight = gradients(lambda x, weight: rms_norm(x, weight, eps, None)[0], grad, x, weight)
    return grad_x, grad_weight

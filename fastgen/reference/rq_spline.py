"""The specification of `fastgen.ops.rq_spline` in plain PyTorch; its gradients are autograd's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus


def softclip(raw: Tensor, bound: float) -> Tensor:
    """Bring real numbers into (-bound, bound), smoothly."""
    return raw / (1 + raw.abs() / bound)


def bin_edges(
    raw: Tensor, minimum: float, low: float, high: float, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Lower edges and sizes of the bins that `raw` (..., K) divides [low, high] into."""
    share = torch.softmax(raw if clip is None else softclip(raw, clip), -1)
    size = minimum + (1 - minimum * raw.shape[-1]) * share
    return low + (high - low) * (size.cumsum(-1) - size), (high - low) * size


def knot_derivatives(raw: Tensor, tails: str, minimum: float, soft: bool) -> Tensor:
    """Derivatives (..., K + 1) at the knots."""
    derivative = torch.exp(softclip(raw, -math.log(minimum))) if soft else minimum + softplus(raw)
    if tails == "linear":
        one = torch.ones_like(raw[..., :1]) if raw.shape[-1] else raw.new_ones((*raw.shape[:-1], 1))
        return torch.cat([one, derivative, one], -1)
    return torch.cat([derivative, derivative[..., :1]], -1) if tails == "circular" else derivative


def _clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Bring back what rounding put outside; gradients pass as if nothing had been clamped."""
    return x + (x.clamp(low, high) - x).detach()


def _within(x: Tensor, low: float, high: float) -> Tensor:
    """x between the bounds; unlike those of `Tensor.clamp`, gradients at NaN are NaN."""
    return torch.where(x < low, low, torch.where(x > high, high, x))


def _root(s: Tensor, eta: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """Where in its bin the spline reaches the share eta of the bin's height.

    The root of a t^2 + b t = s eta with a = s - b, in the form that subtracts nothing of like size. The
    discriminant b^2 + 4 a s eta is written as a sum of terms that are not negative.
    """
    b = d0 - eta * (d0 + d1 - 2 * s)
    root = ((b - 2 * s * eta).square() + 4 * s * s * eta * (1 - eta)).sqrt()
    low = b >= 0
    # Of the form that is not taken, neither value nor gradient may be infinite.
    t_low = 2 * s * eta / torch.where(low, b + root, 1)
    t_high = (root - b) / torch.where(low, 1, 2 * (s - b))
    return torch.where(low, t_low, t_high)


def rq_spline(
    x: Tensor,
    params: Tensor,
    bins: int,
    inverse: bool,
    tails: str,
    left: float,
    right: float,
    bottom: float,
    top: float,
    min_width: float,
    min_height: float,
    min_derivative: float,
    scale: float,
    parametrization: str,
    sum_log_det: bool,
) -> tuple[Tensor, Tensor]:
    """See `fastgen.ops.rq_spline`. Outside of the box, whatever the tails, it is the identity."""
    soft = parametrization == "softclip"
    clip = -math.log(min_derivative) / 2 if soft else None
    widths, heights, derivatives = params.split([bins, bins, params.shape[-1] - 2 * bins], -1)
    x_edge, width = bin_edges(scale * widths, 0 if soft else min_width, left, right, clip)
    y_edge, height = bin_edges(scale * heights, 0 if soft else min_height, bottom, top, clip)
    derivative = knot_derivatives(derivatives, tails, min_derivative, soft)

    low, high = (bottom, top) if inverse else (left, right)
    inside = _within(x, low, high)  # so that what is outside has no gradient that is not finite
    edges = y_edge if inverse else x_edge
    k = (inside[..., None] >= edges[..., 1:]).sum(-1, keepdim=True)
    x_edge, width, y_edge, height, d0, d1 = (
        choice.gather(-1, k)[..., 0]
        for choice in (x_edge, width, y_edge, height, derivative[..., :-1], derivative[..., 1:])
    )
    s = height / width
    if inverse:
        t = _clamp(_root(s, _clamp((inside - y_edge) / height, 0, 1), d0, d1), 0, 1)
    else:
        t = _clamp((inside - x_edge) / width, 0, 1)
    u = t * (1 - t)
    denominator = s + (d0 + d1 - 2 * s) * u
    slope = (s / denominator).square() * (d1 * t * t + 2 * s * u + d0 * (1 - t).square())
    if inverse:
        y, log_det = _clamp(x_edge + width * t, left, right), -slope.log()
    else:
        y = _clamp(y_edge + height * (s * t * t + d0 * u) / denominator, bottom, top)
        log_det = slope.log()
    outside = (x < low) | (x > high)
    y, log_det = torch.where(outside, x, y), torch.where(outside, 0, log_det)
    return y, log_det.sum(-1) if sum_log_det else log_det


def rq_spline_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, params: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    """Gradients of x and params, given those of what `rq_spline(x, params, *options)` returns."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = x.clone().requires_grad_(), params.clone().requires_grad_()
        outputs = rq_spline(*leaves, *options)
        grads = grad_y.clone(), grad_log_det.clone()
        grad_x, grad_params = torch.autograd.grad(outputs, leaves, grads)
    return grad_x, grad_params

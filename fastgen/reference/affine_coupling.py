"""The specification of `fastgen.ops.affine_coupling` in plain PyTorch; its gradients are autograd's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

BOUNDED = ("tanh", "atan", "softclip")
"""Scale maps whose log-scale `clamp` bounds."""

FLOORED = ("sigmoid", "softplus")
"""Scale maps that `min_scale` is added to."""

SCALE_MAPS = ("exp", *BOUNDED, *FLOORED, "reciprocal_sigmoid")

Options = tuple[int, str, str, str, float, float, bool]


def log_scale_of(raw: Tensor, scale_map: str, clamp: float, min_scale: float) -> Tensor:
    """The logarithm of the scale, element by element."""
    if scale_map == "exp":
        return raw
    if scale_map == "tanh":
        return clamp * torch.tanh(raw / clamp)
    if scale_map == "atan":
        return clamp * 0.636 * torch.atan(raw / clamp)
    if scale_map == "softclip":
        return raw / (1 + raw.abs() / clamp)
    if scale_map == "reciprocal_sigmoid":
        return softplus(-2 - raw)
    return _log_of_floored(raw, scale_map, min_scale)


def _log_of_floored(raw: Tensor, scale_map: str, min_scale: float) -> Tensor:
    a = raw + 2 if scale_map == "sigmoid" else raw
    # Far below zero both maps are exp(a); where that underflows, its logarithm is still there.
    low = (a < (-20 if a.dtype == torch.float32 else -40)) if min_scale == 0 else torch.zeros_like(a).bool()
    inside = torch.where(low, 0, a)
    scale = torch.sigmoid(inside) if scale_map == "sigmoid" else softplus(inside, threshold=40)
    return torch.where(low, a, torch.log(scale + min_scale))


def split_params(params: Tensor, layout: str, first: str) -> tuple[Tensor, Tensor]:
    """Shift and raw scale (N, T, ...) of params (N, 2T, ...)."""
    half = params.shape[1] // 2
    pair = (params[:, :half], params[:, half:]) if layout == "halves" else (params[:, 0::2], params[:, 1::2])
    return pair if first == "shift" else (pair[1], pair[0])


def affine_coupling(
    x: Tensor,
    params: Tensor,
    mask: Tensor | None,
    passed: int,
    scale_map: str,
    layout: str,
    first: str,
    clamp: float,
    min_scale: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """See `fastgen.ops.affine_coupling`; the mask has the shape of a row of x."""
    shift, raw = split_params(params, layout, first)
    if mask is not None:  # so that what is masked has no gradient that is not finite
        shift, raw = torch.where(mask, 0, shift), torch.where(mask, 0, raw)
    log_scale = log_scale_of(raw, scale_map, clamp, min_scale)
    head, inside, tail = _pieces(x, passed)
    y = (inside - shift) * torch.exp(-log_scale) if inverse else inside * torch.exp(log_scale) + shift
    log_det = -log_scale if inverse else log_scale
    if mask is not None:
        y, log_det = torch.where(mask, inside, y), torch.where(mask, 0, log_det)
    return torch.cat([head, y, tail], 1) if passed else y, log_det.flatten(1).sum(1)


def _pieces(x: Tensor, passed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The channels before those that are transformed, those, and the channels after them."""
    channels = x.shape[1]
    begin, end = max(passed, 0), channels + min(passed, 0)
    return x[:, :begin], x[:, begin:end], x[:, end:]


def affine_coupling_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, params: Tensor, mask: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    """Gradients of x and params, given those of what `affine_coupling(x, params, ...)` returns."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = x.clone().requires_grad_(), params.clone().requires_grad_()
        fixed = None if mask is None else mask.clone()
        outputs = affine_coupling(*leaves, fixed, *options)
        grads = grad_y.clone(), grad_log_det.clone()
        grad_x, grad_params = torch.autograd.grad(outputs, leaves, grads)
    return grad_x, grad_params

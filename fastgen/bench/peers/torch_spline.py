"""A rational-quadratic spline with linear tails as one writes it in PyTorch: whole tensors, no masks."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_SHARE, MIN_DERIVATIVE = 1e-3, 1e-3


def _knots(raw: Tensor, bound: float) -> Tensor:
    share = MIN_SHARE + (1 - MIN_SHARE * raw.shape[-1]) * torch.softmax(raw, -1)
    return bound * (2 * F.pad(share.cumsum(-1), (1, 0)) - 1)


def spline(x: Tensor, params: Tensor, *, bins: int, inverse: bool, bound: float) -> tuple[Tensor, Tensor]:
    """Return y and the summed log-determinants."""
    widths, heights, derivatives = params.split([bins, bins, bins - 1], -1)
    x_knots, y_knots = _knots(widths, bound), _knots(heights, bound)
    slopes = F.pad(MIN_DERIVATIVE + F.softplus(derivatives), (1, 1), value=1.0)
    inside = x.clamp(-bound, bound)
    searched = y_knots if inverse else x_knots
    k = (inside[..., None] >= searched[..., 1:-1]).sum(-1, keepdim=True)
    at = partial(torch.gather, dim=-1)
    x0, x1, y0, y1, d0, d1 = (
        at(values, index=index).squeeze(-1) for values in (x_knots, y_knots, slopes) for index in (k, k + 1)
    )
    width, height = x1 - x0, y1 - y0
    s = height / width
    bend = d0 + d1 - 2 * s
    if inverse:
        rise = inside - y0
        a, b, c = height * (s - d0) + rise * bend, height * d0 - rise * bend, -s * rise
        t = 2 * c / (-b - (b * b - 4 * a * c).clamp(min=0).sqrt())
    else:
        t = (inside - x0) / width
    denominator = s + bend * t * (1 - t)
    slope = s**2 * (d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2) / denominator**2
    y = x0 + t * width if inverse else y0 + height * (s * t**2 + d0 * t * (1 - t)) / denominator
    outside = x.abs() > bound
    log_det = slope.log().masked_fill(outside, 0.0)
    return torch.where(outside, x, y), (-log_det if inverse else log_det).sum(-1)

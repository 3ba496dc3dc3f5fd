"""The rational-quadratic splines of nflows and normflows, which describe them by the same attributes."""

import math
from typing import Any

import torch
from torch import Tensor

from fastgen.ops import Spline, rq_spline


def spline_of(module: Any, scale: float = 1.0) -> Spline:
    """The spline of a module with `num_bins`, `tails`, `tail_bound`, ...; without tails bound is 1."""
    return Spline(
        bins=_bins(module),
        tails=module.tails,
        bound=1.0 if module.tails is None else float(module.tail_bound),
        min_width=module.min_bin_width,
        min_height=module.min_bin_height,
        min_derivative=module.min_derivative,
        scale=scale,
    )


def softmax_scale(network: Any) -> float:
    """What raw widths and heights of a network are multiplied by: the rule of nflows and normflows."""
    for name in ("hidden_features", "hidden_channels"):
        if hasattr(network, name):
            return 1 / math.sqrt(getattr(network, name))
    return 1.0


def spline_obstacle(module: Any) -> str | None:
    """Why the op cannot stand for a module's spline, or None."""
    if not (isinstance(module.tails, str | None) and module.tails in ("linear", "circular", None)):
        return f"its tails are {module.tails!r}"
    if max(module.min_bin_width, module.min_bin_height) * _bins(module) >= 1:
        return "its smallest bins leave no room for others"
    return None


def spline(x: Tensor, params: Tensor, how: Spline, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """y like x (N, ...) and log_det (N,), with params (N, ..., P); without tails the box is from 0 to 1."""
    options = how._asdict()
    if how.tails is None:
        options["bound"], options["box"] = 1.0, (0.0, 1.0, 0.0, 1.0)
    flat = params.reshape(len(x), -1, how.parameters).to(x.dtype)
    y, log_det = rq_spline(x.flatten(1), flat, inverse=inverse, **options)
    return y.view(x.shape), log_det


def shared_spline(module: Any, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """The spline of a `PiecewiseRationalQuadraticCDF`, whose parameters are the same for all rows."""
    parts = (module.unnormalized_widths, module.unnormalized_heights, module.unnormalized_derivatives)
    params = torch.cat(parts, -1)
    return spline(x, params.expand(len(x), *params.shape), spline_of(module), inverse=inverse)


def of_pixels(params: Tensor, features: int) -> Tensor:
    """Network outputs (N, features P, ...) as (N, features, ..., P)."""
    apart = params.unflatten(1, (features, -1))
    return apart.movedim(2, -1)


def _bins(module: Any) -> int:
    bins = getattr(module, "num_bins", None)  # which a PiecewiseRationalQuadraticCDF does not keep
    return module.unnormalized_widths.shape[-1] if bins is None else bins

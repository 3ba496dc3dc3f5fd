"""The rational-quadratic splines of nflows and normflows, which describe them by the same attributes."""

import math
from typing import Any

import torch
from torch import Tensor

from fastgen.ops import Spline, rq_spline


def spline_of(module: Any, scale: float = 1.0) -> Spline:
    """The spline of a module with `num_bins`, `tails`, `tail_bound`, ...

    Its bound is 1 without tails and where each feature has a bound of its own.
    """
    own = module.tails is not None and not isinstance(module.tail_bound, Tensor)
    return Spline(
        bins=_bins(module),
        tails=module.tails,
        bound=float(module.tail_bound) if own else 1.0,
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
    of_features = module.tails if isinstance(module.tails, (list, tuple)) else [module.tails]
    if not all(tails in ("linear", "circular", None) for tails in of_features):
        return f"its tails are {module.tails!r}"
    if max(module.min_bin_width, module.min_bin_height) * _bins(module) >= 1:
        return "its smallest bins leave no room for others"
    return None


def spline(x: Tensor, params: Tensor, how: Spline, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """y like x (N, ...) and log_det (N,), with params (N, ..., P); without tails the box is from 0 to 1."""
    options = how._asdict()
    if how.tails is None:
        options["bound"], options["box"] = 1.0, (0.0, 1.0, 0.0, 1.0)
    flat = params.reshape(len(x), math.prod(x.shape[1:]), how.parameters).to(x.dtype)
    y, log_det = rq_spline(x.flatten(1), flat, inverse=inverse, **options)
    return y.view(x.shape), log_det


def spline_of_module(
    module: Any, x: Tensor, params: Tensor, *, scale: float = 1.0, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The same for a module, whose features may have tails and bounds of their own."""
    how = spline_of(module, scale)
    bound = module.tail_bound if how.tails is not None and isinstance(module.tail_bound, Tensor) else None
    inside = x if bound is None else x / bound
    if isinstance(how.tails, (list, tuple)):
        y, log_det = _of_columns(how, inside, params, inverse=inverse)
    else:
        y, log_det = spline(inside, params, how, inverse=inverse)
    return y if bound is None else y * bound, log_det


def shared_params(module: Any, rows: int) -> Tensor:
    """The parameters (N, ..., P) of a `PiecewiseRationalQuadraticCDF`, the same for all rows."""
    parts = (module.unnormalized_widths, module.unnormalized_heights, module.unnormalized_derivatives)
    params = torch.cat(parts, -1)
    return params.expand(rows, *params.shape)


def of_pixels(params: Tensor, features: int) -> Tensor:
    """Network outputs (N, features P, ...) as (N, features, ..., P)."""
    apart = params.unflatten(1, (features, -1))
    return apart.movedim(2, -1)


def _of_columns(how: Spline, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """normflows' tails of each feature: params (N, D, 3 K + 1), some not used; beyond the bound y is 0."""
    bins, tails = how.bins, list(how.tails or ())
    y, log_det = torch.empty_like(x), x.new_zeros(len(x))
    for kind, first in (("linear", 2 * bins + 1), ("circular", 2 * bins)):
        columns = [k for k, of_feature in enumerate(tails) if of_feature == kind]
        if columns:
            index = torch.tensor(columns, device=x.device)
            used = torch.cat([params[..., : 2 * bins], params[..., first : 3 * bins]], -1)
            options = how._replace(tails=kind)
            part, change = spline(x[:, index], used[:, index], options, inverse=inverse)
            y, log_det = y.index_copy(1, index, part), log_det + change
    return torch.where(x.abs() <= how.bound, y, 0), log_det


def _bins(module: Any) -> int:
    bins = getattr(module, "num_bins", None)  # which a PiecewiseRationalQuadraticCDF does not keep
    return module.unnormalized_widths.shape[-1] if bins is None else bins

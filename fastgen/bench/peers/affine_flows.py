"""An affine coupling as one writes it in PyTorch, and as nflows, normflows and zuko have it.

Each takes x (N, D) or (N, C, H, W) and the parameters that a network put out.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

CLAMP = 2.0


def eager(x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """The log-scale bounded by tanh, halves."""
    shift, raw = params.chunk(2, 1)
    log_scale = CLAMP * torch.tanh(raw / CLAMP)
    y = (x - shift) * torch.exp(-log_scale) if inverse else x * torch.exp(log_scale) + shift
    log_det = log_scale.flatten(1).sum(1)
    return y, -log_det if inverse else log_det


def nflows(x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """Its AffineCouplingTransform, from the parameters on: sigmoid(raw + 2) + 1e-3, halves."""
    layer = _nflows_layer(x.shape[1])
    run = layer._coupling_transform_inverse if inverse else layer._coupling_transform_forward
    y, log_det = run(x, params)
    return y, log_det


def normflows(x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """Its AffineCoupling with the map "exp", interleaved."""
    layer = _normflows_layer()
    layer.param_map.params = params
    (_, y), log_det = layer.inverse([x, x]) if inverse else layer([x, x])
    return y, log_det


def zuko(x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """Its MonotonicAffineTransform, interleaved."""
    from zuko.transforms import DependentTransform, MonotonicAffineTransform  # noqa: PLC0415

    shift, raw = params.unflatten(1, (-1, 2)).unbind(-1)
    transform = DependentTransform(MonotonicAffineTransform(shift, raw), 1)
    y, log_det = (transform.inv if inverse else transform).call_and_ladj(x)
    return y, log_det


class _Given(torch.nn.Module):
    """A network that puts out what it was given."""

    params: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.params


@cache
def _nflows_layer(channels: int) -> Any:
    from nflows.transforms import AffineCouplingTransform  # noqa: PLC0415

    mask = torch.cat([torch.zeros(1), torch.ones(channels)])
    return AffineCouplingTransform(mask, lambda passed, transformed: torch.nn.Identity())


@cache
def _normflows_layer() -> Any:
    from normflows.flows.affine.coupling import AffineCoupling  # noqa: PLC0415

    return AffineCoupling(_Given(), scale_map="exp")

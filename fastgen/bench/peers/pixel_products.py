"""A matrix times the channels of every pixel: as a convolution of PyTorch, and as normflows has it."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def eager(x: Tensor, weight: Tensor, log_abs_det: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """By `conv2d`, the inverse matrix computed in float64 each time, as Glow's codes do."""
    if inverse:
        weight, log_abs_det = torch.linalg.inv(weight.double()).to(weight.dtype), -log_abs_det
    y = F.conv2d(x, weight[:, :, None, None])
    return y, (log_abs_det * (x.shape[2] * x.shape[3])).expand(len(x))


def normflows(x: Tensor, weight: Tensor, log_abs_det: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """Its Invertible1x1Conv, whose forward pass goes from latent to data."""
    layer = _normflows_layer(len(weight), weight.dtype)
    layer.W.data = weight
    y, log_det = layer(x) if inverse else layer.inverse(x)
    return y, log_det.expand(len(x))


@cache
def _normflows_layer(channels: int, dtype: torch.dtype) -> Any:
    from normflows.flows.mixing import Invertible1x1Conv  # noqa: PLC0415

    return Invertible1x1Conv(channels).to(dtype)

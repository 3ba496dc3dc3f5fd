"""The specification of `fastgen.ops.conv_net` in plain PyTorch."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F


def conv_net(
    x: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    second: Tensor,
    second_bias: Tensor | None,
    third: Tensor,
    third_bias: Tensor | None,
    slope: float,
    channels_last: bool,
) -> Tensor:
    """See `fastgen.ops.conv_net`: x (N, C, H, W), or channels last (N, H, W, C), with N, H and W not 0."""
    h = x.movedim(-1, 1) if channels_last else x
    h = _activate(_convolve(h, first, first_bias), slope)
    h = _activate(_convolve(h, second, second_bias), slope)
    y = _convolve(h, third, third_bias)
    return y.movedim(1, -1) if channels_last else y


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with _float32() if x.is_cuda else contextlib.nullcontext():
        y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return y if bias is None else y + bias[..., None, None]


def _float32() -> contextlib.AbstractContextManager[None]:
    """On a GPU cuDNN rounds float32 to TF32 unless it is told not to."""
    found: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, allow_tf32=False
    )
    return found


def _activate(z: Tensor, slope: float) -> Tensor:
    return F.relu(z) if slope == 0 else F.leaky_relu(z, slope)

"""The specification of `fastgen.ops.invertible_linear` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def invertible_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, log_abs_det: Tensor, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """See `fastgen.ops.invertible_linear`: x (N, C, P), or channels last (N, P, C), for P pixels."""
    y = x @ weight.T if channels_last else weight @ x
    if bias is not None:
        y = y + (bias if channels_last else bias[:, None])
    pixels = x.shape[1 if channels_last else 2]
    return y, (pixels * log_abs_det).repeat(x.shape[0])

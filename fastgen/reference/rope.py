"""The specification of `fastgen.ops.rope` in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """See `fastgen.ops.rope`; float32 inside, or float64, rounded once to the dtype of x."""
    wide = x.to(cos.dtype)
    half = x.shape[-1] // 2
    a, b = (wide[..., ::2], wide[..., 1::2]) if interleaved else (wide[..., :half], wide[..., half:])
    cos, sin = cos[:, None, :], sin[:, None, :]  # one angle for all heads
    turned = a * cos - b * sin, b * cos + a * sin
    joined = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return joined.to(x.dtype)

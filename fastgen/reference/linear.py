"""The specification of `fastgen.ops.linear` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,  # slope 0.01
    "elu": F.elu,  # alpha 1
    "gelu": F.gelu,  # z Phi(z), by erf
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,  # z itself above 20
}


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    """See `fastgen.ops.linear`; products and sums in float32 or float64, one rounding to the dtype of x."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = ACTIVATIONS[activation](
        F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    )
    return (y if residual is None else y + residual).to(x.dtype)

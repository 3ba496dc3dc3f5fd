"""Norms and what stands before them in a transformer, as PyTorch has them."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None) -> Any:
    """Return y, and the sum where there is a residual."""
    total = x if residual is None else x + residual
    y = F.rms_norm(total, weight.shape, weight, eps)
    return y if residual is None else (y, total)


def layer_norm(x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None) -> Any:
    """Return y, and the sum where there is a residual; the bias is as long as the weight and the same."""
    total = x if residual is None else x + residual
    y = F.layer_norm(total, weight.shape, weight, weight, eps)
    return y if residual is None else (y, total)

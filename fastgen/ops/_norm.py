"""What `rms_norm` and `layer_norm` share: their checks, and how their results and gradients come together."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgen.ops._checks import number

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_FLOATING = (*DTYPES, torch.float16)


def kind(value: object) -> str:
    """What came in the place of a dense floating tensor."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype}" if value.layout == torch.strided else f"{value.layout} of {value.dtype}"


def is_dense(value: object, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether this is a strided tensor of one of the dtypes."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.dtype in dtypes


def widened(value: Tensor, x: Tensor) -> Tensor:
    """A weight in the dtype that rows of x are computed in, contiguous."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (value if value.dtype == wide else value.to(wide)).contiguous()


def check(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None) -> float:
    """Raise what the public functions document, or return eps as a float."""
    if not is_dense(x, DTYPES):
        raise TypeError(f"x is {kind(x)}, wanted a dense float32, bfloat16 or float64 tensor")
    if x.dim() < 1:
        raise ValueError("x has shape (), wanted (..., C)")
    _check_scale("weight", weight, x)
    if bias is not None:
        _check_scale("bias", bias, x)
    if residual is not None and not is_dense(residual, (x.dtype,)):
        raise TypeError(f"residual is {kind(residual)}, wanted a dense {x.dtype} tensor as x")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, wanted {tuple(x.shape)} as x")
    if residual is not None and residual.device != x.device:
        raise ValueError(f"residual is on {residual.device}, wanted {x.device} as x")
    found = eps if type(eps) is float else number("eps", eps)
    if not 0 <= found < math.inf:
        raise ValueError(f"eps is {eps}, wanted a finite number >= 0")
    return found


def _check_scale(name: str, value: Tensor, x: Tensor) -> None:
    if not is_dense(value, _FLOATING):
        raise TypeError(f"{name} is {kind(value)}, wanted a dense floating tensor")
    if value.shape != x.shape[-1:]:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted {tuple(x.shape[-1:])} as rows of x")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, wanted {x.device} as x")


def rows_of(x: Tensor) -> Tensor:
    """The rows of x one after the other, (N, C)."""
    return (x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])).contiguous()


def shaped(y: Tensor, total: Tensor, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """What the public function returns, in the shape of x."""
    return y.view(x.shape) if residual is None else (y.view(x.shape), total.view(x.shape))


def fake(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """y and the sum, which is empty without a residual."""
    return torch.empty_like(x), x.new_empty(0) if residual is None else torch.empty_like(x)


def grad_of_sum(grad: Tensor, ctx: Any, grad_total: Tensor) -> Tensor:
    """The gradient of x and of the residual: what comes through y, and straight through the sum."""
    return grad + grad_total if ctx.has_residual else grad


def anything(*arguments: Any) -> None:
    """Any number will do: NaN and infinity go where the formula takes them."""

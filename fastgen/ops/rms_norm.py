"""The op `rms_norm`: rows divided by their root mean square, with the residual addition before it.

Triton covers the GPU: one pass over a row and a reduction, to which CUDA C++ would add nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgen.ops import _norm
from fastgen.ops._registry import Op, direct, register, vjp
from fastgen.reference import rms_norm as reference


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None) -> Any:
    """weight x / sqrt(mean(x^2) + eps) of rows (Zhang and Sennrich 2019, arXiv:1910.07467).

    With a residual, x + residual is what is normalized, and is returned too: the addition and the norm
    between two layers of a transformer in one pass. Sums are float32 (float64 for float64) and y is rounded
    once. The bits of a row depend on that row alone: element i is added, by FMA, to the sum number i mod 64,
    and the 64 sums as a tree; they are the same with AVX2 and AVX-512, and others without FMA.

    Differentiable in x, weight and residual, twice.

    Args:
        x: (..., C) float32, bfloat16 or float64.
        weight: (C,) floating; computed with in float32, or float64 if x is float64.
        eps: finite, >= 0, added to the mean square.
        residual: (..., C) in the dtype of x, or None.

    Returns:
        y in the shape and dtype of x; with a residual (y, x + residual), the sum rounded to the dtype of x
        before it is normalized. Of a row of zeros with eps = 0, NaN.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    found = _direct(x, weight, eps, residual)
    if found is not None:
        return found
    eps = _norm.check(x, weight, None, eps, residual)
    rows = _norm.rows_of(x), _norm.widened(weight, x)
    y, total = _call(*rows, eps, None if residual is None else _norm.rows_of(residual))
    return _norm.shaped(y, total, x, residual)


def _native(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    y, total = _norm.fake(x, residual)
    torch.ops.fastgen_native.rms_norm.default(y, total, x, weight, eps, residual)
    return y, total


def _native_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    torch.ops.fastgen_native.rms_norm_backward(grad_x, grad_weight, grad, x, weight, eps)
    return grad_x, grad_weight


def _triton(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import rms_norm as kernels  # noqa: PLC0415  triton is optional

    y, total = _norm.fake(x, residual)
    kernels.rms_norm(y, total, x, weight, eps, residual)
    return y, total


def _triton_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import rms_norm as kernels  # noqa: PLC0415  triton is optional

    return kernels.rms_norm_backward(grad, x, weight, eps)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, ctx.eps, residual = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(output[1] if ctx.has_residual else x, weight)


def _backward(ctx: Any, grad: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        grad_x, grad_weight = vjp(
            lambda x, weight: reference.rms_norm(x, weight, ctx.eps, None)[0], (x, weight), (grad,)
        )
    else:
        grad_x, grad_weight = torch.ops.fastgen.rms_norm_backward(grad.contiguous(), x, weight, ctx.eps)
    assert grad_x is not None
    grad_x = _norm.grad_of_sum(grad_x, ctx, grad_total)
    return grad_x, grad_weight, None, grad_x if ctx.has_residual else None


_direct = direct("rms_norm")
_call = register(
    Op(
        name="rms_norm",
        schema="(Tensor x, Tensor weight, float eps, Tensor? residual) -> (Tensor, Tensor)",
        fake=lambda x, weight, eps, residual: _norm.fake(x, residual),
        implementations={"reference": reference.rms_norm, "native": _native, "triton": _triton},
        check_values=_norm.anything,
        setup_context=_setup_context,
        backward=_backward,
    )
)

register(
    Op(
        name="rms_norm_backward",
        schema="(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
        fake=lambda grad, x, weight, eps: (torch.empty_like(x), torch.empty_like(weight)),
        implementations={
            "reference": reference.rms_norm_backward,
            "native": _native_backward,
            "triton": _triton_backward,
        },
        check_values=_norm.anything,
    )
)

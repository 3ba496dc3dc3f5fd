"""The op `layer_norm`: rows with mean 0 and variance 1, scaled and shifted, after the residual addition.

Triton covers the GPU: one pass over a row and two reductions, to which CUDA C++ would add nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgen.ops import _norm
from fastgen.ops._registry import Op, direct, register, vjp
from fastgen.reference import layer_norm as reference


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float, residual: Tensor | None = None
) -> Any:
    """weight (x - mean) / sqrt(variance + eps) + bias of rows (Ba et al. 2016, arXiv:1607.06450).

    With a residual, x + residual is what is normalized, and is returned too: the addition and the norm
    between two layers of a transformer in one pass. The variance is the mean square of x - mean. Sums are
    float32 (float64 for float64) and y is rounded once. The bits of a row depend on that row alone: element i
    is added to the sum number i mod 64, and the 64 sums as a tree; they are the same with AVX2 and AVX-512,
    and others without FMA.

    Differentiable in x, weight, bias and residual, twice.

    Args:
        x: (..., C) float32, bfloat16 or float64.
        weight: (C,) floating; computed with in float32, or float64 if x is float64.
        bias: (C,) floating, or None for zero.
        eps: finite, >= 0, added to the variance.
        residual: (..., C) in the dtype of x, or None.

    Returns:
        y in the shape and dtype of x; with a residual (y, x + residual), the sum rounded to the dtype of x
        before it is normalized. Of a row of equal numbers with eps = 0, NaN.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    found = _direct(x, weight, bias, eps, residual)
    if found is not None:
        return found
    eps = _norm.check(x, weight, bias, eps, residual)
    y, total = _call(
        _norm.rows_of(x),
        _norm.widened(weight, x),
        None if bias is None else _norm.widened(bias, x),
        eps,
        None if residual is None else _norm.rows_of(residual),
    )
    return _norm.shaped(y, total, x, residual)


def _native(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, total = _norm.fake(x, residual)
    torch.ops.fastgen_native.layer_norm.default(y, total, x, weight, bias, eps, residual)
    return y, total


def _native_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    torch.ops.fastgen_native.layer_norm_backward(*grads, grad, x, weight, eps)
    return grads


def _triton(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import layer_norm as kernels  # noqa: PLC0415  triton is optional

    y, total = _norm.fake(x, residual)
    kernels.layer_norm(y, total, x, weight, bias, eps, residual)
    return y, total


def _triton_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    from fastgen.kernels import layer_norm as kernels  # noqa: PLC0415  triton is optional

    return kernels.layer_norm_backward(grad, x, weight, eps)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, ctx.eps, residual = inputs
    ctx.has_residual, ctx.has_bias = residual is not None, bias is not None
    ctx.save_for_backward(output[1] if ctx.has_residual else x, weight)


def _backward(ctx: Any, grad: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        grad_x, grad_weight, grad_bias = vjp(
            lambda x, weight, bias: reference.layer_norm(x, weight, bias, ctx.eps, None)[0],
            (x, weight, torch.zeros_like(weight)),
            (grad,),
        )
    else:
        grad_x, grad_weight, grad_bias = torch.ops.fastgen.layer_norm_backward(
            grad.contiguous(), x, weight, ctx.eps
        )
    assert grad_x is not None
    grad_x = _norm.grad_of_sum(grad_x, ctx, grad_total)
    return (
        grad_x,
        grad_weight,
        grad_bias if ctx.has_bias else None,
        None,
        grad_x if ctx.has_residual else None,
    )


_direct = direct("layer_norm")
_call = register(
    Op(
        name="layer_norm",
        schema="(Tensor x, Tensor weight, Tensor? bias, float eps, Tensor? residual) -> (Tensor, Tensor)",
        fake=lambda x, weight, bias, eps, residual: _norm.fake(x, residual),
        implementations={"reference": reference.layer_norm, "native": _native, "triton": _triton},
        check_values=_norm.anything,
        setup_context=_setup_context,
        backward=_backward,
    )
)

register(
    Op(
        name="layer_norm_backward",
        schema="(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
        fake=lambda grad, x, weight, eps: (
            torch.empty_like(x),
            torch.empty_like(weight),
            torch.empty_like(weight),
        ),
        implementations={
            "reference": reference.layer_norm_backward,
            "native": _native_backward,
            "triton": _triton_backward,
        },
        check_values=_norm.anything,
    )
)

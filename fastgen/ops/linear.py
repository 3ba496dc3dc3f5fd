"""The op `linear`: x times a weight, a bias, an activation and a residual, in one pass and one fixed order.

Triton covers the GPU: the work is one product with an epilogue, to which CUDA C++ would add nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen.ops._linear_checks import (
    NUMBERS,
    check_activation,
    check_addends,
    is_dense,
    kind,
    number_of,
)
from fastgen.ops._packed_weight import PackedWeight
from fastgen.ops._registry import Op, direct, register, vjp
from fastgen.ops.packed_linear import packed_linear
from fastgen.reference import linear as reference

_DTYPES = {
    torch.float32: (torch.float32, torch.bfloat16),
    torch.bfloat16: (torch.float32, torch.bfloat16),
    torch.float64: (torch.float64,),
}


def linear(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x W^T + b) + residual: the layer of `torch.nn.functional.linear` with what follows it.

    The bits of a row depend on that row alone: not on the other rows, not on how many there are, not on the
    threads. (`torch.nn.functional.linear` adds in another order for each batch size.) The native
    implementation adds every 16th product (float64: every 8th) in order, by FMA, and the 16 sums as a tree;
    its bits are the same with AVX2 and AVX-512, and others without FMA.

    Differentiable in x, weight, bias and residual, twice; the backward pass is made of PyTorch's own products
    and keeps none of these promises.

    Args:
        x: (..., in) float32, bfloat16 or float64.
        weight: W (out, in), float32 or bfloat16, whichever x of the two; float64 if x is float64. What is
            bfloat16 is widened: products and sums are float32, and the result is rounded once. A PackedWeight
            goes to `fastgen.ops.packed_linear`, with the same arguments and an order of its own.
        bias: b (out,), floating; None is zero.
        activation: "none", "relu", "leaky_relu" (slope 0.01), "elu", "gelu" (by erf), "gelu_tanh", "silu",
            "tanh", "sigmoid" or "softplus", as PyTorch defines them.
        residual: (..., out) in the dtype of x, added to what the activation gives; None is zero.

    Returns:
        (..., out) in the dtype of x. With no inputs (in = 0) the sums are zero.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    if isinstance(weight, PackedWeight):
        return packed_linear(x, weight, bias, activation=activation, residual=residual)
    y = _direct(x, weight, bias, number_of(activation), residual)
    if y is not None:
        return y
    _check(x, weight, bias, activation, residual)
    shape, (outputs, inputs) = x.shape[:-1], weight.shape
    if len(shape) != 1:
        x = x.reshape(math.prod(shape), inputs)
        residual = None if residual is None else residual.reshape(x.shape[0], outputs)
    out = _call(
        x.contiguous(),
        weight.contiguous(),
        None if bias is None else bias.to(_wide(x)).contiguous(),
        activation,
        None if residual is None else residual.contiguous(),
    )
    return out if len(shape) == 1 else out.view(*shape, outputs)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None) -> None:
    check_activation(activation)
    if not is_dense(x) or x.dtype not in _DTYPES:
        raise TypeError(f"x is {kind(x)}, wanted a dense float32, bfloat16 or float64 tensor")
    if not is_dense(weight) or weight.dtype not in _DTYPES[x.dtype]:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES[x.dtype])
        raise TypeError(f"weight is {kind(weight)}, wanted a dense {names} tensor, since x is {x.dtype}")
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, wanted (out, in)")
    outputs, inputs = weight.shape
    if x.dim() < 1 or x.shape[-1] != inputs:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted (..., {inputs}) for this weight")
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}, wanted {x.device} as x")
    check_addends(x, outputs, bias, residual)


def _check_values(*arguments: Any) -> None:
    """Any number will do: NaN and infinity go where the sums take them."""


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _reference(x: Tensor, *rest: Any) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return reference.linear(x, *rest)


def _native(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    if x.dtype == torch.bfloat16:
        wide_residual = None if residual is None else residual.float()
        return _native(x.float(), weight, bias, activation, wide_residual).bfloat16()
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype)
    torch.ops.fastgen_native.linear.default(y, x, weight, bias, NUMBERS[activation], residual)
    return y


def _triton(*arguments: Any) -> Tensor:
    from fastgen.kernels import linear as kernels  # noqa: PLC0415  triton is optional

    return kernels.linear(*arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.activation, residual = inputs
    kept = output if residual is None and ctx.activation in _FROM_OUTPUT else None
    ctx.save_for_backward(x, weight, bias, residual, kept)


# Derivatives that are found from what the activation gave: with these the backward pass adds no sums again.
_FROM_OUTPUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, y: torch.where(y <= 0, 0.0, grad),
    "leaky_relu": lambda grad, y: torch.where(y > 0, grad, 0.01 * grad),
    "elu": lambda grad, y: torch.where(y > 0, grad, grad * (y + 1)),
    "tanh": lambda grad, y: grad * (1 - y * y),
    "sigmoid": lambda grad, y: grad * (1 - y) * y,
    "softplus": lambda grad, y: grad * -torch.expm1(-y),
}


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, y = ctx.saved_tensors
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
            return _through_reference(ctx.activation, x, weight, bias, residual, grad)
        wide = _wide(x)
        x, weight, inner = x.to(wide), weight.to(wide), grad.to(wide)
        inner = _before_activation(ctx.activation, inner, x, weight, bias, y)
        needs = ctx.needs_input_grad
        return (
            (inner @ weight).to(grad.dtype) if needs[0] else None,
            (inner.T @ x).to(ctx.saved_tensors[1].dtype) if needs[1] else None,
            inner.sum(0) if needs[2] else None,
            None,
            grad if needs[4] else None,
        )


def _before_activation(
    activation: str, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor | None
) -> Tensor:
    if activation == "none":
        return grad
    if y is not None:
        return _FROM_OUTPUT[activation](grad, y.to(grad.dtype))
    (found,) = vjp(reference.ACTIVATIONS[activation], [F.linear(x, weight, bias)], [grad])
    assert found is not None
    return found


def _through_reference(
    activation: str, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The same gradients as functions that can be differentiated in their turn."""
    given = [x, weight] if bias is None else [x, weight, bias]

    def again(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return reference.linear(x, weight, bias, activation, None)

    grad_x, grad_weight, *grad_bias = vjp(again, given, [grad])
    return grad_x, grad_weight, grad_bias[0] if grad_bias else None, None, None if residual is None else grad


_direct = direct("linear")
_call = register(
    Op(
        name="linear",
        schema="(Tensor x, Tensor weight, Tensor? bias, str activation, Tensor? residual) -> Tensor",
        fake=_fake,
        implementations={"reference": _reference, "native": _native, "triton": _triton},
        check_values=_check_values,
        setup_context=_setup_context,
        backward=_backward,
    )
)

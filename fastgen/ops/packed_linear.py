"""The op `packed_linear`: x times a weight of 32, 16, 8 or 4 bits, in the format that its memory has.

Triton covers the GPU: the work is one product of widened tiles, to which CUDA C++ would add nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

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
from fastgen.reference import packed_linear as reference

_FORMATS = {name: number for number, name in enumerate(reference.DTYPES)}  # of csrc/cpu/packed_linear.h


def packed_linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x W^T + b) + residual, with W in the format of a `PackedWeight`.

    The bits of a row depend on that row alone: not on the other rows, not on how many there are, not on the
    threads; and they are the same with AVX2 and AVX-512. With "float32" and "bfloat16" each output is one
    chain of FMAs over the inputs in order. With GGUF's formats the native implementation rounds each block of
    32 inputs of x to 16-bit integers times a scale (its largest magnitude is 32767), multiplies and adds them
    exactly, and adds the blocks by FMA: every fourth block in order, and the four sums as a tree. That
    rounding loses 1/65534 of the largest input of a block. With "int8" every implementation rounds a block to
    integers up to 127, which loses up to 1/254 of its largest input and is what makes this format the fastest
    for many rows; its blocks are one chain. A block of x that holds NaN or infinity makes its whole row NaN.

    Differentiable in x, bias and residual, twice, through PyTorch's products with the widened weight; the
    weight itself is a constant.

    Args:
        x: (..., in) float32, bfloat16 or float64. bfloat16 is widened, and the result rounded once; float64
            is left to the reference.
        weight: W (out, in), a `PackedWeight`.
        bias: b (out,), floating; None is zero.
        activation: one of those of `fastgen.ops.linear`.
        residual: (..., out) in the dtype of x, added to what the activation gives; None is zero.

    Returns:
        (..., out) in the dtype of x. With no inputs (in = 0) the sums are zero.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    if type(weight) is PackedWeight:
        format, number = _FORMATS[weight.format], number_of(activation)
        y = _direct(x, weight.data, weight.scale, format, *weight.shape, bias, number, residual)
        if y is not None:
            return y
    _check(x, weight, bias, activation, residual)
    shape, (outputs, inputs) = x.shape[:-1], weight.shape
    if len(shape) != 1:
        x = x.reshape(math.prod(shape), inputs)
        residual = None if residual is None else residual.reshape(x.shape[0], outputs)
    out = _call(
        x.contiguous(),
        weight.data,
        weight.scale,
        weight.format,
        outputs,
        None if bias is None else _as_wide(bias, x),
        activation,
        None if residual is None else residual.contiguous(),
    )
    return out if len(shape) == 1 else out.view(*shape, outputs)


def _as_wide(bias: Tensor, x: Tensor) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (bias if bias.dtype == wide else bias.to(wide)).contiguous()


def _check(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str, residual: Tensor | None
) -> None:
    check_activation(activation)
    if not is_dense(x) or x.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise TypeError(f"x is {kind(x)}, wanted a dense float32, bfloat16 or float64 tensor")
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"weight is {kind(weight)}, wanted a PackedWeight: PackedWeight.pack makes one")
    outputs, inputs = weight.shape
    if x.dim() < 1 or x.shape[-1] != inputs:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted (..., {inputs}) for this weight")
    if weight.data.device != x.device:
        raise ValueError(f"weight is on {weight.data.device}, wanted {x.device} as x")
    check_addends(x, outputs, bias, residual)


def _check_values(*arguments: Any) -> None:
    """Any number will do: NaN and infinity go where the sums take them."""


def _fake(x: Tensor, data: Tensor, scale: Tensor | None, format: str, outputs: int, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


def _reference(x: Tensor, *rest: Any) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return reference.packed_linear(x, *rest)


def _native(
    x: Tensor,
    data: Tensor,
    scale: Tensor | None,
    format: str,
    outputs: int,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    if x.dtype == torch.float64:
        return _reference(x, data, scale, format, outputs, bias, activation, residual)
    if x.dtype == torch.bfloat16:
        wide_residual = None if residual is None else residual.float()
        y = _native(x.float(), data, scale, format, outputs, bias, activation, wide_residual)
        return y.bfloat16()
    y = x.new_empty((x.shape[0], outputs))
    torch.ops.fastgen_native.packed_linear.default(
        y, x, data, scale, _FORMATS[format], bias, NUMBERS[activation], residual
    )
    return y


def _triton(x: Tensor, *rest: Any) -> Tensor:
    from fastgen.kernels import packed_linear as kernels  # noqa: PLC0415  triton is optional

    return _reference(x, *rest) if x.dtype == torch.float64 else kernels.packed_linear(x, *rest)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, data, scale, ctx.format, ctx.outputs, bias, ctx.activation, residual = inputs
    ctx.save_for_backward(x, data, scale, bias)
    ctx.has_residual = residual is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, bias and residual, through the reference: they can be differentiated in their turn."""
    x, data, scale, bias = ctx.saved_tensors

    def again(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return reference.packed_linear(x, data, scale, ctx.format, ctx.outputs, bias, ctx.activation, None)

    with torch.autocast(x.device.type, enabled=False):
        grad_x, *grad_bias = vjp(again, [x] if bias is None else [x, bias], [grad])
    bias_grad = grad_bias[0] if grad_bias else None
    return grad_x, None, None, None, None, bias_grad, None, grad if ctx.has_residual else None


_direct = direct("packed_linear")
_call = register(
    Op(
        name="packed_linear",
        schema="(Tensor x, Tensor data, Tensor? scale, str format, int outputs, Tensor? bias, str activation,"
        " Tensor? residual) -> Tensor",
        fake=_fake,
        implementations={"reference": _reference, "native": _native, "triton": _triton},
        check_values=_check_values,
        setup_context=_setup_context,
        backward=_backward,
    )
)

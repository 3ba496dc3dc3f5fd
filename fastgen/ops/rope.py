"""The op `rope`: rotary position embedding.

Triton covers the GPU: an element needs its partner and one angle, to which CUDA C++ would add nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgen.ops._norm import DTYPES, anything, is_dense, kind, widened
from fastgen.ops._registry import Op, direct, register, vjp
from fastgen.reference import rope as reference


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Pairs of each head turned by their position's angles (Su et al. 2021, arXiv:2104.09864).

        (a, b) -> (a cos - b sin, b cos + a sin)

    a and b are elements i and i + D/2 of a head (Llama as transformers has it, GPT-NeoX) or, interleaved,
    2i and 2i + 1 (the paper; GPT-J). Computed in float32 (float64 for float64) by one product and one FMA,
    rounded once. An element's bits depend on it, its partner and its angle alone; they are the same with AVX2
    and AVX-512, and others without FMA.

    Differentiable in x, cos and sin, twice.

    Args:
        x: (..., T, H, D), float32, bfloat16 or float64; D even.
        cos, sin: (T, D / 2) floating, of the angles of each position.
        interleaved: how elements pair.

    Returns:
        A tensor like x.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    y = _direct(x, cos, sin, interleaved)
    if y is not None:
        return y
    _check(x, cos, sin, interleaved)
    y = _call(
        (x if x.dim() == 4 else x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])).contiguous(),
        widened(cos, x),
        widened(sin, x),
        interleaved,
    )
    return y.view(x.shape)


def _check(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    if not is_dense(x, DTYPES):
        raise TypeError(f"x is {kind(x)}, wanted a dense float32, bfloat16 or float64 tensor")
    if x.dim() < 3 or x.shape[-1] % 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted (..., T, H, D) with D even")
    shape = (x.shape[-3], x.shape[-1] // 2)
    for name, value in (("cos", cos), ("sin", sin)):
        if not is_dense(value, (*DTYPES, torch.float16)):
            raise TypeError(f"{name} is {kind(value)}, wanted a dense floating tensor")
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted {shape}: (T, D / 2) of this x")
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device}, wanted {x.device} as x")
    if not isinstance(interleaved, bool):
        raise TypeError(f"interleaved is {interleaved!r}, wanted True or False")


def _native(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    y = torch.empty_like(x)
    torch.ops.fastgen_native.rope.default(y, x, cos, sin, interleaved)
    return y


def _triton(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    from fastgen.kernels import rope as kernels  # noqa: PLC0415  triton is optional

    return kernels.rope(x, cos, sin, interleaved)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, cos, sin, ctx.interleaved = inputs
    ctx.save_for_backward(x, cos, sin)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of x: the turn backwards. Of the angles, which are seldom learned: through the reference."""
    x, cos, sin = ctx.saved_tensors
    grad_x = grad_cos = grad_sin = None
    if ctx.needs_input_grad[0]:
        grad_x = _call(grad.contiguous(), cos, -sin, ctx.interleaved)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        _, grad_cos, grad_sin = vjp(
            lambda x, cos, sin: reference.rope(x, cos, sin, ctx.interleaved), (x, cos, sin), (grad,)
        )
    return grad_x, grad_cos, grad_sin, None


_direct = direct("rope")
_call = register(
    Op(
        name="rope",
        schema="(Tensor x, Tensor cos, Tensor sin, bool interleaved) -> Tensor",
        fake=lambda x, cos, sin, interleaved: torch.empty_like(x),
        implementations={"reference": reference.rope, "native": _native, "triton": _triton},
        check_values=anything,
        setup_context=_setup_context,
        backward=_backward,
    )
)

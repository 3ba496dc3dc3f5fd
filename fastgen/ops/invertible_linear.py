"""The op `invertible_linear`: a matrix times the channels of every pixel, an invertible 1x1 convolution.

Triton covers the GPU: the work is a small product with an epilogue, to which CUDA C++ would add nothing.
"""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from fastgen.ops._registry import Op, register
from fastgen.reference import invertible_linear as reference

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def invertible_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    log_abs_det: Tensor | float | None = None,
    inverse: bool = False,
    dim: int = 1,
) -> tuple[Tensor, Tensor]:
    """y = W x + b for the channels x of every pixel, and its log-determinant (Kingma and Dhariwal 2018).

    The log-determinant is pixels * log|det W|: every pixel (H W of them in an image, one in a vector) is
    mapped. The inverse is W^-1 (x - b), W^-1 being computed in float64, each time: the layer
    `fastgen.nn.InvertibleLinear` keeps it.

    A sum over channels starts at the bias and adds channel after channel in float32, in float64 for float64;
    bfloat16 results are rounded once. So a row's bits depend on that row alone: not on the batch or the
    threads. Differentiable in x, weight, bias and log_abs_det, twice.

    Args:
        x: (N, C, ...), pixels by channel, or with dim=-1 (N, ..., C); float32, float64 or bfloat16. Both
            memory formats of (N, C, H, W) are taken as they are.
        weight: W (C, C), float32, float64 if x is float64.
        bias: b (C,), the dtype of weight; None is zero.
        log_abs_det: log|det W|, a number or a tensor (), where it is known, as it is of W = P L U; None
            computes it in float64.
        inverse: from y to x; the log-determinant is then that of the inverse.
        dim: which dimension holds the channels, 1 or -1.

    Returns:
        y in the shape and dtype of x, and log|det dy/dx| in nats, (N,), in x's dtype.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted; a W whose determinant is 0
            among them.
    """
    _check(x, weight, bias, inverse, dim)
    log_abs_det = _log_abs_det(weight, log_abs_det)
    if inverse:
        weight, bias = inverse_map(weight, bias)
        log_abs_det = -log_abs_det
    channels_last = dim == -1 or x.dim() == 2 or not _is_planar(x)
    rows = x.movedim(1, -1) if channels_last and dim == 1 else x
    shape = rows.shape
    rows = rows.reshape(shape[0], math.prod(shape[1:-1]), shape[-1]) if channels_last else rows.flatten(2)
    y, log_det = torch.ops.fastgen.invertible_linear(
        rows.contiguous(),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        log_abs_det,
        channels_last,
    )
    y = y.view(shape)
    return y.movedim(-1, 1) if channels_last and dim == 1 else y, log_det


def inverse_map(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """W^-1 and -W^-1 b, computed in float64, in the dtype of weight; not finite where W is singular."""
    wide, _ = torch.linalg.inv_ex(weight.double())
    return wide.to(weight.dtype), None if bias is None else -(wide @ bias.double()).to(weight.dtype)


def _is_planar(x: Tensor) -> bool:
    """Whether (N, C, ...) is best taken channel by channel: not where it lies in memory pixel by pixel."""
    return x.dim() == 2 or x.is_contiguous() or not x.movedim(1, -1).is_contiguous()


def _log_abs_det(weight: Tensor, given: Tensor | float | None) -> Tensor:
    if given is None:
        return torch.linalg.slogdet(weight.double()).logabsdet.to(weight.dtype)
    if isinstance(given, Tensor):
        if given.dim() or not given.is_floating_point() or given.device != weight.device:
            raise ValueError(
                f"log_abs_det is {given.dtype} of shape {tuple(given.shape)} on {given.device},"
                f" wanted a floating tensor of shape () on {weight.device}"
            )
        return given.to(weight.dtype)
    if not isinstance(given, SupportsFloat):
        raise TypeError(f"log_abs_det is {type(given).__name__}, wanted a number or a tensor of shape ()")
    return weight.new_tensor(float(given))


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, inverse: bool, dim: int) -> None:
    for name, value in (("x", x), ("weight", weight), ("bias", bias)):
        if value is None and name == "bias":
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            kind = f"a {value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} is {kind}, wanted a dense tensor")
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device}, wanted {x.device} as x")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x is {x.dtype}, wanted float32, float64 or bfloat16")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if weight.dtype != wide:
        raise TypeError(f"weight is {weight.dtype}, wanted {wide} since x is {x.dtype}")
    if dim not in (1, -1):
        raise ValueError(f"dim is {dim!r}, wanted 1 or -1")
    if not isinstance(inverse, bool):
        raise TypeError(f"inverse is {inverse!r}, wanted True or False")
    if x.dim() < 2 or x.shape[dim] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted (N, C, ...) or (N, ..., C) with C >= 1")
    if weight.dim() != 2 or weight.shape[0] != weight.shape[1]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, wanted (C, C)")
    channels = len(weight)
    if x.shape[dim] != channels:
        wanted = f"(N, {channels}, ...)" if dim == 1 else f"(N, ..., {channels})"
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted {wanted} for a weight {(channels, channels)}")
    if bias is not None and (bias.shape != (channels,) or bias.dtype != wide):
        raise ValueError(f"bias is {bias.dtype} of shape {tuple(bias.shape)}, wanted {wide} of ({channels},)")


def _check_values(
    x: Tensor, weight: Tensor, bias: Tensor | None, log_abs_det: Tensor, channels_last: bool
) -> None:
    if math.isinf(log_abs_det.item()):
        raise ValueError("weight is singular: its determinant is 0 or infinite, wanted an invertible matrix")


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, log_abs_det: Tensor, channels_last: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[:1])


def _reference(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        y, log_det = reference.invertible_linear(x.to(weight.dtype), weight, *rest)
    return y.to(x.dtype), log_det.to(x.dtype)


def _native(
    x: Tensor, weight: Tensor, bias: Tensor | None, log_abs_det: Tensor, channels_last: bool
) -> tuple[Tensor, Tensor]:
    wide = x.to(weight.dtype)
    y = torch.empty_like(wide)
    torch.ops.fastgen_native.invertible_linear(y, wide, weight, bias, channels_last)
    return y.to(x.dtype), _log_det(x, log_abs_det, channels_last)


def _triton(
    x: Tensor, weight: Tensor, bias: Tensor | None, log_abs_det: Tensor, channels_last: bool
) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import invertible_linear as kernels  # noqa: PLC0415  triton is optional

    y = kernels.invertible_linear(x, weight, bias, channels_last)
    return y, _log_det(x, log_abs_det, channels_last)


def _log_det(x: Tensor, log_abs_det: Tensor, channels_last: bool) -> Tensor:
    pixels = x.shape[1 if channels_last else 2]
    return (pixels * log_abs_det).to(x.dtype).expand(x.shape[0]).contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, _, ctx.channels_last = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted_x, wanted_weight, wanted_bias, wanted_det, _ = ctx.needs_input_grad
    grad_x = grad_weight = grad_bias = grad_det = None
    if wanted_x:  # the same op, so that it can be differentiated in its turn
        grad_x, _ = torch.ops.fastgen.invertible_linear(
            grad_y.contiguous(), weight.T.contiguous(), None, weight.new_zeros(()), ctx.channels_last
        )
    wide = grad_y.to(weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if wanted_weight:
            pattern = "npo,npi->oi" if ctx.channels_last else "nop,nip->oi"
            grad_weight = torch.einsum(pattern, wide, x.to(weight.dtype))
    if wanted_bias:
        grad_bias = wide.sum((0, 1) if ctx.channels_last else (0, 2))
    if wanted_det:
        grad_det = x.shape[1 if ctx.channels_last else 2] * grad_log_det.to(weight.dtype).sum()
    return grad_x, grad_weight, grad_bias, grad_det, None


register(
    Op(
        name="invertible_linear",
        schema="(Tensor x, Tensor weight, Tensor? bias, Tensor log_abs_det, bool channels_last)"
        " -> (Tensor, Tensor)",
        fake=_fake,
        implementations={"reference": _reference, "native": _native, "triton": _triton},
        check_values=_check_values,
        setup_context=_setup_context,
        backward=_backward,
    )
)

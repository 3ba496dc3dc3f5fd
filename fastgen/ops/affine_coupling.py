"""The op `affine_coupling`: y = scale x + shift and its log-determinant, as coupling layers and MAF need it.

Triton covers the GPU: an element needs its two parameters and nothing of its neighbours, and the sum over a
row is a reduction that Triton says well, so CUDA C++ would say the same in more words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgen.ops._checks import check_elements, number
from fastgen.ops._registry import Op, register, vjp, without_half
from fastgen.reference import affine_coupling as reference
from fastgen.reference.affine_coupling import BOUNDED, FLOORED, SCALE_MAPS

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def affine_coupling(
    x: Tensor,
    params: Tensor,
    *,
    scale_map: str,
    layout: str = "halves",
    first: str = "shift",
    clamp: float = 2.0,
    min_scale: float = 0.0,
    mask: Tensor | None = None,
    passed: int = 0,
    inverse: bool = False,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """y = scale(raw) x + shift or its inverse, with the log-determinant (Dinh et al. 2017, arXiv:1605.08803).

    The scale maps, c for `clamp` and m for `min_scale`:

        "exp"                 exp(raw)
        "tanh"                exp(c tanh(raw / c))
        "atan"                exp(0.636 c atan(raw / c)), FrEIA's
        "softclip"            exp(raw / (1 + |raw| / c)), zuko's with c = -log(slope)
        "sigmoid"             sigmoid(raw + 2) + m, that of nflows with m = 1e-3
        "softplus"            softplus(raw) + m, that of nflows' autoregressive transform with m = 1e-3
        "reciprocal_sigmoid"  1 / sigmoid(raw + 2), which normflows calls "sigmoid"

    Computed in float32, in float64 for float64; results and gradients are rounded once. A scale beyond the
    largest number is infinite, and where it is 0 the inverse is; the log-determinant stays finite in both.
    Gradients are recomputed from x and params: nothing else is kept for the backward pass. Row i's bits do
    not depend on the batch or the threads; log-determinants are added in an order that the shape of a row
    alone fixes.

    Args:
        x: (N, C, ...) float32, float64 or bfloat16. NaN and infinity go where the formula takes them.
        params: (N, 2 T, ...), x's dtype, for the T channels that are transformed.
        scale_map: one of the above.
        layout: "halves": T channels of one kind, then T of the other; "interleaved": in turns.
        first: the kind that comes first, "shift" or "scale".
        clamp: c, finite, > 0: the bound of the log-scale of "tanh" and "softclip".
        min_scale: m, finite, >= 0, of "sigmoid" and "softplus".
        mask: bool, broadcast to a row of x, (C, ...): elements that pass unchanged and add nothing to the
            log-determinant; their parameters play no part.
        passed: so many channels pass unchanged and have no parameters: the first ones, or if negative the
            last ones; |passed| < C, and T = C - |passed|. Not together with mask.
        inverse: (x - shift) / scale; the log-determinant is then that of the inverse.
        inplace: y takes the memory of x. Not where gradients are wanted.

    Returns:
        y in the shape of x and log|det dy/dx| in nats, (N,), both in x's dtype.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: inplace where gradients are wanted.
    """
    _check_choices(layout, first, inverse, inplace)
    clamp, min_scale = check_scale_map(scale_map, clamp, min_scale)
    _check_tensors(x, params, passed)
    options = (passed, scale_map, layout, first, clamp, min_scale, inverse)
    arguments = params.contiguous(), _mask_of_row(mask, x, passed), *options
    if not inplace:
        y, log_det = torch.ops.fastgen.affine_coupling(x.contiguous(), *arguments)
        return y, log_det
    if torch.is_grad_enabled() and (x.requires_grad or params.requires_grad):
        raise RuntimeError("inplace is True and gradients are wanted, which need what x holds: copy instead")
    if not x.is_contiguous():
        raise ValueError(f"x has strides {x.stride()}, wanted a contiguous tensor with inplace=True")
    log_det = torch.ops.fastgen.affine_coupling_(x, *arguments)
    if not torch.compiler.is_compiling() and not x.is_inference():
        torch.autograd.graph.increment_version(x)  # so that autograd sees that x was written
    return x, log_det


def check_scale_map(scale_map: Any, clamp: Any, min_scale: Any) -> tuple[float, float]:
    """`clamp` and `min_scale` as floats; TypeError or ValueError if there is no such map."""
    _check_choice("scale_map", scale_map, SCALE_MAPS)
    clamp, min_scale = number("clamp", clamp), number("min_scale", min_scale)
    if scale_map in BOUNDED and clamp <= 0:
        raise ValueError(f"clamp is {clamp}, wanted a number > 0")
    if min_scale < 0 or (min_scale > 0 and scale_map not in FLOORED):
        wanted = "a number >= 0" if scale_map in FLOORED else f"0 with scale_map={scale_map!r}"
        raise ValueError(f"min_scale is {min_scale}, wanted {wanted}")
    return clamp, min_scale


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, wanted one of {', '.join(choices)}")


def _check_choices(layout: Any, first: Any, inverse: Any, inplace: Any) -> None:
    _check_choice("layout", layout, ("halves", "interleaved"))
    _check_choice("first", first, ("shift", "scale"))
    for name, flag in (("inverse", inverse), ("inplace", inplace)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is {flag!r}, wanted True or False")


def _check_tensors(x: Tensor, params: Tensor, passed: int) -> None:
    check_elements(x, params, _DTYPES)
    if x.dim() < 2 or x.shape[1] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted (N, C, ...) with C >= 1")
    rows, channels, *place = x.shape
    if not isinstance(passed, int) or isinstance(passed, bool) or abs(passed) >= channels:
        raise ValueError(f"passed is {passed!r}, wanted an integer between -{channels} and {channels}")
    wanted = (rows, 2 * (channels - abs(passed)), *place)
    if params.shape != wanted:
        raise ValueError(
            f"params has shape {tuple(params.shape)}, wanted {wanted}: a shift and a scale for each element"
        )


def _mask_of_row(mask: Tensor | None, x: Tensor, passed: int) -> Tensor | None:
    if mask is None:
        return None
    if passed:
        raise ValueError(f"mask came with passed={passed}, wanted one of the two")
    if not isinstance(mask, Tensor) or mask.layout != torch.strided or mask.dtype != torch.bool:
        raise TypeError(f"mask is {getattr(mask, 'dtype', type(mask).__name__)}, wanted a dense bool tensor")
    if mask.device != x.device:
        raise ValueError(f"mask is on {mask.device}, wanted {x.device} as x")
    row = x.shape[1:]
    sides = zip(reversed(mask.shape), reversed(row), strict=False)
    if mask.dim() > len(row) or any(a not in (1, b) for a, b in sides):
        raise ValueError(f"mask has shape {tuple(mask.shape)}, wanted one that broadcasts to {tuple(row)}")
    return mask.expand(row).contiguous()


def _inplace(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """The log-determinant of `function`, whose y goes where x was."""

    def run(x: Tensor, *arguments: Any) -> Tensor:
        y, log_det = function(x, *arguments)
        x.copy_(y)
        return log_det

    return run


def _geometry(x: Tensor, passed: int, scale_map: str, layout: str, first: str, *rest: Any) -> tuple[Any, ...]:
    """Where a row's parameters lie, and the other options, as the native kernels take them."""
    pixels = math.prod(x.shape[2:])
    run = pixels if layout == "interleaved" else (x.shape[1] - abs(passed)) * pixels
    return max(passed, 0) * pixels, max(run, 1), SCALE_MAPS.index(scale_map), first == "shift", *rest


def _native(x: Tensor, params: Tensor, mask: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    y, log_det = torch.empty_like(x), x.new_empty(x.shape[:1])
    torch.ops.fastgen_native.affine_coupling(y, log_det, x, params, mask, *_geometry(x, *options))
    return y, log_det


def _native_(x: Tensor, params: Tensor, mask: Tensor | None, *options: Any) -> Tensor:
    log_det = x.new_empty(x.shape[:1])
    torch.ops.fastgen_native.affine_coupling(x, log_det, x, params, mask, *_geometry(x, *options))
    return log_det


def _native_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, params: Tensor, mask: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    grad_x, grad_params = torch.empty_like(x), torch.empty_like(params)
    torch.ops.fastgen_native.affine_coupling_backward(
        grad_x, grad_params, grad_y, grad_log_det, x, params, mask, *_geometry(x, *options)
    )
    return grad_x, grad_params


def _around(source: Tensor, target: Tensor, passed: int) -> None:
    """Copy the channels that pass."""
    channels = slice(0, passed) if passed > 0 else slice(source.shape[1] + passed, None)
    target[:, channels] = source[:, channels]


def _for_triton(x: Tensor, options: tuple[Any, ...]) -> tuple[Any, ...]:
    begin, run, _, *rest = _geometry(x, *options)
    return begin, run, options[1], *rest


def _triton(x: Tensor, params: Tensor, mask: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import affine_coupling as kernels  # noqa: PLC0415  triton is optional

    y, log_det = torch.empty_like(x), x.new_empty(x.shape[:1])
    _around(x, y, options[0])
    kernels.affine_coupling(y, log_det, x, params, mask, *_for_triton(x, options))
    return y, log_det


def _triton_(x: Tensor, params: Tensor, mask: Tensor | None, *options: Any) -> Tensor:
    from fastgen.kernels import affine_coupling as kernels  # noqa: PLC0415  triton is optional

    log_det = x.new_empty(x.shape[:1])
    kernels.affine_coupling(x, log_det, x, params, mask, *_for_triton(x, options))
    return log_det


def _triton_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, params: Tensor, mask: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import affine_coupling as kernels  # noqa: PLC0415  triton is optional

    grad_x, grad_params = torch.empty_like(x), torch.empty_like(params)
    _around(grad_y, grad_x, options[0])
    kernels.affine_coupling_backward(
        grad_x, grad_params, grad_y, grad_log_det, x, params, mask, *_for_triton(x, options)
    )
    return grad_x, grad_params


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, params, mask, *ctx.options = inputs
    ctx.save_for_backward(x, params, mask)


def _backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Any, ...]:
    x, params, mask = ctx.saved_tensors
    if torch.is_grad_enabled():
        run = without_half(reference.affine_coupling)
        grads = vjp(lambda *leaves: run(*leaves, mask, *ctx.options), (x, params), (grad_y, grad_log_det))
    else:
        grads = torch.ops.fastgen.affine_coupling_backward(
            grad_y.contiguous(), grad_log_det.contiguous(), x, params, mask, *ctx.options
        )
    return *grads, *(None,) * (1 + len(ctx.options))


_OPTIONS = (
    " Tensor? mask, int passed, str scale_map, str layout, str first, float clamp, float min_scale,"
    " bool inverse) -> "
)


def _anything(*arguments: Any) -> None:
    """Any number will do."""


register(
    Op(
        name="affine_coupling",
        schema="(Tensor x, Tensor params," + _OPTIONS + "(Tensor, Tensor)",
        fake=lambda x, *rest: (torch.empty_like(x), x.new_empty(x.shape[:1])),
        implementations={
            "reference": without_half(reference.affine_coupling),
            "native": _native,
            "triton": _triton,
        },
        check_values=_anything,
        setup_context=_setup_context,
        backward=_backward,
    )
)

register(
    Op(
        name="affine_coupling_",
        schema="(Tensor(a!) x, Tensor params," + _OPTIONS + "Tensor",
        fake=lambda x, *rest: x.new_empty(x.shape[:1]),
        implementations={
            "reference": _inplace(without_half(reference.affine_coupling)),
            "native": _native_,
            "triton": _triton_,
        },
        check_values=_anything,
    )
)

register(
    Op(
        name="affine_coupling_backward",
        schema="(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor params,"
        + _OPTIONS
        + "(Tensor, Tensor)",
        fake=lambda grad_y, grad_log_det, x, params, *rest: (torch.empty_like(x), torch.empty_like(params)),
        implementations={
            "reference": without_half(reference.affine_coupling_backward),
            "native": _native_backward,
            "triton": _triton_backward,
        },
        check_values=_anything,
    )
)

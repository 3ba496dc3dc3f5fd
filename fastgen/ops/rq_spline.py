"""The op `rq_spline`: monotonic rational-quadratic splines, element by element, with log-determinants.

Triton covers the GPU: an element needs nothing of its neighbours and no loop stays on the chip, so CUDA C++
would say the same in more words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgen.ops._checks import check_elements, number
from fastgen.ops._registry import Op, register, vjp, without_half
from fastgen.reference import rq_spline as reference

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PARAMETRIZATIONS = ("softmax", "softclip")


def rq_spline(
    x: Tensor,
    params: Tensor,
    *,
    bins: int,
    inverse: bool = False,
    tails: str | None = "linear",
    bound: float = 1.0,
    box: tuple[float, float, float, float] | None = None,
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_derivative: float = 1e-3,
    scale: float = 1.0,
    parametrization: str = "softmax",
    sum_log_det: bool = True,
) -> tuple[Tensor, Tensor]:
    """Monotonic rational-quadratic spline (Durkan et al. 2019, arXiv:1906.04032), or its inverse.

    The K bins of an element divide [-bound, bound] on both axes. With t in [0, 1] the place in the bin, s its
    height over its width, d0 and d1 the derivatives at its knots,

        y = y_k + height (s t^2 + d0 t (1-t)) / (s + (d0 + d1 - 2s) t (1-t))

    Parametrization "softmax", as in nflows and normflows:

        width = 2 bound (min_width + (1 - K min_width) softmax(scale raw)), heights likewise
        derivative = min_derivative + softplus(raw)

    "softclip", as in zuko, where clip(raw, c) = raw / (1 + |raw| / c) and c = -log(min_derivative); there
    min_width and min_height play no part:

        width = 2 bound softmax(clip(scale raw, c / 2)), heights likewise;  derivative = exp(clip(raw, c))

    Computed in float32, in float64 for float64; results and gradients are rounded once. Gradients are
    recomputed from x and params: nothing else is kept for the backward pass. Row i's bits do not depend on
    the batch or the threads; log-determinants are added in an order that D alone fixes.

    Args:
        x: (N, D) float32, float64, bfloat16 or float16. NaN gives NaN for that element alone,
            in gradients too, whatever is made of its results.
        params: (N, D, P), x's dtype: K raw widths, K raw heights and the raw derivatives of each element.
        bins: K, 1 or more.
        inverse: from y to x; the log-determinant is then that of the inverse.
        tails: what is beyond the bound. "linear": the identity, reached with derivative 1, P = 3K - 1.
            "circular": both ends share the first derivative, P = 3K; the identity beyond. None: nothing is
            beyond, x must lie in the box, P = 3K + 1.
        bound: half the width of the box, finite, > 0.
        box: (left, right, bottom, top), with tails=None, instead of bound.
        min_width, min_height: smallest share of a bin, 0 <= share and K share < 1.
        min_derivative: 0 <= min_derivative < 1; with "softclip" also > 0 (zuko's slope).
        scale: finite; multiplies raw widths and heights, such as nflows' 1 / sqrt(hidden_features).
        parametrization: "softmax" or "softclip".
        sum_log_det: False gives log|dy/dx| of each element.

    Returns:
        y (N, D) and log|det dy/dx| in nats, (N,), or (N, D) without the sum, both in x's dtype.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    numbers = check_spline(
        bins, tails, bound, box, min_width, min_height, min_derivative, scale, parametrization
    )
    for name, flag in (("inverse", inverse), ("sum_log_det", sum_log_det)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is {flag!r}, wanted True or False")
    _check_tensors(x, params, parameters(bins, tails), bins, tails)
    options = (bins, inverse, tails or "none", *numbers, parametrization, sum_log_det)
    return torch.ops.fastgen.rq_spline(x.contiguous(), params.contiguous(), *options)


def parameters(bins: int, tails: str | None) -> int:
    """P, the number of parameters of an element."""
    return 3 * bins + {"linear": -1, "circular": 0}.get(tails or "", 1)


def check_spline(
    bins: Any,
    tails: Any,
    bound: Any,
    box: Any,
    min_width: Any,
    min_height: Any,
    min_derivative: Any,
    scale: Any,
    parametrization: Any,
) -> tuple[float, ...]:
    """The box, the three minima and the scale; TypeError or ValueError if there is no such spline."""
    if not isinstance(bins, int) or isinstance(bins, bool) or bins < 1:
        raise ValueError(f"bins is {bins!r}, wanted an integer >= 1")
    if tails not in ("linear", "circular", None):
        raise ValueError(f"tails is {tails!r}, wanted 'linear', 'circular' or None")
    if parametrization not in PARAMETRIZATIONS:
        raise ValueError(f"parametrization is {parametrization!r}, wanted 'softmax' or 'softclip'")
    limits = _box(tails, bound, box)
    minima = _minima(bins, min_width, min_height, min_derivative, parametrization)
    return *limits, *minima, number("scale", scale)


def _box(
    tails: str | None, bound: float, box: tuple[float, float, float, float] | None
) -> tuple[float, float, float, float]:
    if box is None:
        bound = number("bound", bound)
        if bound <= 0:
            raise ValueError(f"bound is {bound}, wanted a number > 0")
        return -bound, bound, -bound, bound
    if tails is not None:
        raise ValueError(f"box came with tails={tails!r}, wanted bound, or tails=None")
    if len(box) != 4:
        raise ValueError(f"box has {len(box)} numbers, wanted (left, right, bottom, top)")
    left, right, bottom, top = (number("box", edge) for edge in box)
    if not (left < right and bottom < top):
        raise ValueError(f"box is {tuple(box)}, wanted left < right and bottom < top")
    return left, right, bottom, top


def _minima(
    bins: int, width: float, height: float, derivative: float, parametrization: str
) -> tuple[float, float, float]:
    width, height = number("min_width", width), number("min_height", height)
    derivative = number("min_derivative", derivative)
    for name, share in (("min_width", width), ("min_height", height)):
        if parametrization == "softmax" and not (share >= 0 and bins * share < 1):
            raise ValueError(f"{name} is {share}, wanted 0 <= {name} < 1 / bins = {1 / bins:g}")
    if not 0 <= derivative < 1:
        raise ValueError(f"min_derivative is {derivative}, wanted 0 <= min_derivative < 1")
    if derivative == 0 and parametrization == "softclip":
        raise ValueError("min_derivative is 0, wanted a number > 0 with parametrization='softclip'")
    return width, height, derivative


def _check_tensors(x: Tensor, params: Tensor, width: int, bins: int, tails: str | None) -> None:
    check_elements(x, params, _DTYPES)
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted (N, D)")
    if params.shape != (*x.shape, width):
        raise ValueError(
            f"params has shape {tuple(params.shape)}, wanted {(*x.shape, width)}:"
            f" {bins} widths, {bins} heights and {width - 2 * bins} derivatives for tails={tails!r}"
        )


def _check_values(x: Tensor, params: Tensor, *options: Any) -> None:
    _, inverse, tails, left, right, bottom, top, *_ = options
    low, high = (bottom, top) if inverse else (left, right)
    if tails == "none" and bool(((x < low) | (x > high)).any()):
        worst = x[(x < low) | (x > high)][0].item()
        raise ValueError(f"x holds {worst}, wanted numbers from {low} to {high}, since tails is None")


def _fake(x: Tensor, params: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[:1] if options[-1] else x.shape)


def _fake_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, params: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(params)


def _native(x: Tensor, params: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    y, log_det = _fake(x, params, *options)
    *most, parametrization, sum_log_det = options
    torch.ops.fastgen_native.rq_spline(
        y, log_det, x, params, *most, parametrization == "softclip", sum_log_det
    )
    return y, log_det


def _native_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, params: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    grad_x, grad_params = torch.empty_like(x), torch.empty_like(params)
    *most, parametrization, sum_log_det = options
    torch.ops.fastgen_native.rq_spline_backward(
        grad_x,
        grad_params,
        grad_y,
        grad_log_det,
        x,
        params,
        *most,
        parametrization == "softclip",
        sum_log_det,
    )
    return grad_x, grad_params


def _triton(x: Tensor, params: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import rq_spline as kernels  # noqa: PLC0415  triton is optional

    return kernels.rq_spline(x, params, *options)


def _triton_backward(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import rq_spline as kernels  # noqa: PLC0415

    return kernels.rq_spline_backward(grad_y, *arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, params, *ctx.options = inputs
    ctx.save_for_backward(x, params)


def _backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Any, ...]:
    x, params = ctx.saved_tensors
    if torch.is_grad_enabled():
        run = without_half(reference.rq_spline)
        grads = vjp(lambda *leaves: run(*leaves, *ctx.options), (x, params), (grad_y, grad_log_det))
    else:
        grads = torch.ops.fastgen.rq_spline_backward(
            grad_y.contiguous(), grad_log_det.contiguous(), x, params, *ctx.options
        )
    return *grads, *(None,) * len(ctx.options)


_OPTIONS = (
    " SymInt bins, bool inverse, str tails, float left, float right, float bottom, float top,"
    " float min_width, float min_height, float min_derivative, float scale, str parametrization,"
    " bool sum_log_det) -> (Tensor, Tensor)"
)

register(
    Op(
        name="rq_spline",
        schema="(Tensor x, Tensor params," + _OPTIONS,
        fake=_fake,
        implementations={
            "reference": without_half(reference.rq_spline),
            "native": without_half(_native),
            "triton": without_half(_triton),
        },
        check_values=_check_values,
        setup_context=_setup_context,
        backward=_backward,
    )
)

register(
    Op(
        name="rq_spline_backward",
        schema="(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor params," + _OPTIONS,
        fake=_fake_backward,
        implementations={
            "reference": without_half(reference.rq_spline_backward),
            "native": without_half(_native_backward),
            "triton": without_half(_triton_backward),
        },
        check_values=lambda *arguments: None,
    )
)

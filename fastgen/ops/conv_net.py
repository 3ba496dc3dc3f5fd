"""The op `conv_net`: three convolutions with an activation between them, the network in a coupling of Glow.

Triton covers the GPU: a convolution is a product with an epilogue, to which CUDA C++ would add nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen.ops._checks import number
from fastgen.ops._linear_checks import is_dense, kind
from fastgen.ops._registry import Op, register, vjp
from fastgen.reference import conv_net as reference

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_LAYERS = ("first", "second", "third")


def conv_net(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    slope: float = 0.0,
    dim: int = 1,
) -> Tensor:
    """w3 * f(w2 * f(w1 * x + b1) + b2) + b3, the network in a coupling of Glow (arXiv:1807.03039).

    `*` is the convolution of `torch.nn.functional.conv2d` with as much padding by zeros as keeps the size of
    the image, and f(z) is z, where z is negative slope z. All three layers run on one image after the other,
    so that what lies between them stays in the caches.

    Sums are float32, in float64 for float64; bfloat16 results are rounded once. The bits of an image depend
    on that image alone: not on the batch, the threads or the strides. (`conv2d` promises none of it.)
    Differentiable in x, weights and biases, twice; the backward pass is made of PyTorch's own convolutions.

    Args:
        x: images (N, C, H, W), or with dim=-1 (N, H, W, C); float32, float64 or bfloat16, in any strides.
        weights: three (outputs, inputs, k, k), k 1 or 3, the inputs of the first being C and those of each
            other the outputs before it; float64 if x is float64, else float32 or bfloat16.
        biases: three (outputs,), or (N, outputs) for each image its own, or None for zero; in the dtypes of
            weights.
        slope: of the activation, finite; 0 is ReLU.
        dim: which dimension holds the channels, 1 or -1.

    Returns:
        (N, outputs, H, W), or with dim=-1 (N, H, W, outputs), contiguous, in the dtype of x.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    slope = number("slope", slope)
    if dim not in (1, -1):
        raise ValueError(f"dim is {dim!r}, wanted 1 or -1")
    _check(x, weights, biases, dim)
    addends = [None if bias is None else bias.contiguous() for bias in biases]
    given = [t for pair in zip(weights, addends, strict=True) for t in pair]
    return torch.ops.fastgen.conv_net.default(x, *given, slope, dim == -1)


def _check(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], dim: int) -> None:
    if not is_dense(x) or x.dtype not in _DTYPES:
        raise TypeError(f"x is {kind(x)}, wanted a dense float32, float64 or bfloat16 tensor")
    if x.dim() != 4 or x.shape[dim] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted (N, C, H, W) or (N, H, W, C) with C >= 1")
    for name, given in (("weights", weights), ("biases", biases)):
        if isinstance(given, Tensor) or not isinstance(given, Sequence) or len(given) != 3:
            raise ValueError(f"{name} is {_form(given)}, wanted a sequence of three")
    inputs = x.shape[dim]
    for layer, weight, bias in zip(_LAYERS, weights, biases, strict=True):
        _check_dtype(f"the {layer} of weights", weight, x)
        if weight.dim() != 4 or weight.shape[1] != inputs or weight.shape[2:] not in ((1, 1), (3, 3)):
            raise ValueError(
                f"the {layer} of weights has shape {tuple(weight.shape)},"
                f" wanted (outputs, {inputs}, k, k) with k 1 or 3"
            )
        if weight.shape[0] < 1:
            raise ValueError(f"the {layer} of weights has no outputs, wanted at least one")
        inputs = weight.shape[0]
        if bias is None:
            continue
        _check_dtype(f"the {layer} of biases", bias, x)
        if bias.shape not in ((inputs,), (len(x), inputs)):
            raise ValueError(
                f"the {layer} of biases has shape {tuple(bias.shape)},"
                f" wanted {(inputs,)} or {(len(x), inputs)}"
            )


def _form(given: object) -> str:
    return f"of length {len(given)}" if isinstance(given, Sequence) else type(given).__name__


def _check_dtype(name: str, value: Any, x: Tensor) -> None:
    wide = x.dtype == torch.float64
    if not is_dense(value) or value.dtype not in _DTYPES or (value.dtype == torch.float64) != wide:
        wanted = "float64" if wide else "float32 or bfloat16"
        raise TypeError(f"{name} is {kind(value)}, wanted a dense {wanted} tensor, since x is {x.dtype}")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, wanted {x.device} as x")


def _check_values(*arguments: Any) -> None:
    """Any number will do: NaN and infinity go where the sums take them."""


def _shape(x: Tensor, last: Tensor, channels_last: bool) -> tuple[int, ...]:
    if channels_last:
        return (*x.shape[:3], last.shape[0])
    return (x.shape[0], last.shape[0], *x.shape[2:])


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(_shape(x, rest[4], rest[7]))


def _widened(x: Tensor, *rest: Any) -> tuple[Any, ...]:
    """All tensors in the dtype of the sums."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = (x, *rest)
    if all(t.dtype == wide for t in given if isinstance(t, Tensor)):
        return given
    return tuple(t.to(wide) if isinstance(t, Tensor) else t for t in given)


def _reference(x: Tensor, *rest: Any) -> Tensor:
    if x.numel() == 0:  # which conv2d does not take
        return _fake(x, *rest)
    with torch.autocast(x.device.type, enabled=False):
        return reference.conv_net(*_widened(x, *rest)).to(x.dtype).contiguous()


def _native(x: Tensor, *rest: Any) -> Tensor:
    wide, *given = _widened(x, *rest)
    y = torch.empty(_shape(x, rest[4], rest[7]), dtype=wide.dtype)
    given[0:6:2] = [w if w.stride(1) == 1 else w.contiguous() for w in given[0:6:2]]
    torch.ops.fastgen_native.conv_net.default(y, wide, *given)
    return y.to(x.dtype)


def _triton(*arguments: Any) -> Tensor:
    from fastgen.kernels import conv_net as kernels  # noqa: PLC0415  triton is optional

    return kernels.conv_net(*arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.slope, ctx.channels_last = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    if tensors[0].numel() == 0:
        return (*(None if t is None else torch.zeros_like(t) for t in tensors), None, None)
    present = [t for t in tensors if t is not None]

    def again(x: Tensor, *given: Tensor) -> Tensor:
        left = iter(given)
        rest = (None if t is None else next(left) for t in tensors[1:])
        return _reference(x, *rest, ctx.slope, ctx.channels_last)

    found = iter(vjp(again, present, [grad]))
    return (*(None if t is None else next(found) for t in tensors), None, None)


register(
    Op(
        name="conv_net",
        schema="(Tensor x, Tensor first, Tensor? first_bias, Tensor second, Tensor? second_bias,"
        " Tensor third, Tensor? third_bias, float slope, bool channels_last) -> Tensor",
        fake=_fake,
        implementations={"reference": _reference, "native": _native, "triton": _triton},
        check_values=_check_values,
        setup_context=_setup_context,
        backward=_backward,
    )
)

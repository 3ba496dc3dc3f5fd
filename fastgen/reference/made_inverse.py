"""The specification of `fastgen.ops.made_inverse` in plain PyTorch: one pass for each degree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fastgen.reference.affine_coupling import log_scale_of
from fastgen.reference.linear import ACTIVATIONS
from fastgen.reference.rq_spline import rq_spline

ACTIVATED, RESIDUAL, ADDEND, GATE = 1, 2, 4, 8
"""The bits of a layer's `wiring`: activation of its inputs, skip over two layers, term, factor."""


class Layer(NamedTuple):
    """One masked linear layer, cut out of the flat arguments of the op."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)
    mask: Tensor  # (out, in)
    wiring: int
    addend: Tensor | None  # (N, out)
    gate: Tensor | None  # (N, out)


class Transform(NamedTuple):
    """What maps each x to z, as the op's flat arguments say it."""

    kind: str  # "affine" or "spline"
    form: str  # the scale map, or the spline's parametrization
    bins: int
    tails: str
    numbers: Sequence[float]  # clamp and min_scale, or box, minima and scale of the spline


def layers(
    weight: Tensor,
    bias: Tensor,
    context: Tensor | None,
    degrees: Tensor,
    units: Sequence[int],
    wiring: Sequence[int],
) -> Iterator[Layer]:
    """The layers from the first to the last; `units` counts inputs, hidden units, outputs."""
    of_units = list(torch.split(degrees, list(units[:-1])))
    of_units.append(of_units[0].repeat_interleave(units[-1] // units[0]))
    w = b = c = 0
    for k, wires in enumerate(wiring):
        ins, outs = units[k], units[k + 1]
        terms: list[Tensor | None] = []
        for wire in (ADDEND, GATE):
            terms.append(context[:, c : c + outs] if wires & wire and context is not None else None)
            c += outs if wires & wire else 0
        below, above = of_units[k], of_units[k + 1][:, None]
        mask = above > below if k == len(wiring) - 1 else above >= below
        yield Layer(weight[w : w + ins * outs].view(outs, ins), bias[b : b + outs], mask, wires, *terms)
        w, b = w + ins * outs, b + outs


def made(x: Tensor, network: Sequence[Layer], activation: str) -> Tensor:
    """The parameters (N, D, P) that the network gives for x (N, D)."""
    outputs: list[Tensor] = []
    h = x
    for layer in network:
        h = ACTIVATIONS[activation](h) if layer.wiring & ACTIVATED else h
        h = functional.linear(h, torch.where(layer.mask, layer.weight, 0).to(h.dtype), layer.bias.to(h.dtype))
        h = h if layer.addend is None else h + layer.addend.to(h.dtype)
        h = h if layer.gate is None else h * layer.gate.to(h.dtype)
        h = h + outputs[-2] if layer.wiring & RESIDUAL else h
        outputs.append(h)
    return h.unflatten(1, (x.shape[1], -1))


def transform(x: Tensor, params: Tensor, kind: Transform, inverse: bool) -> tuple[Tensor, Tensor]:
    """Every element of x (N, D) to z with its parameters (N, D, P), or back; log_det (N, D)."""
    if kind.kind == "affine":
        log_det = log_scale_of(params[..., 0], kind.form, kind.numbers[0], kind.numbers[1])
        shift = params[..., 1]
        if inverse:
            return (x - shift) * torch.exp(-log_det), -log_det
        return x * torch.exp(log_det) + shift, log_det
    left, right, bottom, top, *minima, scale = kind.numbers
    box, (width, height, slope) = (left, right, bottom, top), minima
    return rq_spline(
        x, params, kind.bins, inverse, kind.tails, *box, width, height, slope, scale, kind.form, False
    )


def made_inverse(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    context: Tensor | None,
    degrees: Tensor,
    units: Sequence[int],
    wiring: Sequence[int],
    activation: str,
    *kind: str | int | Sequence[float],
) -> tuple[Tensor, Tensor]:
    """See `fastgen.ops.made_inverse`; each pass sees zeros where x is not known yet."""
    network = list(layers(weight, bias, context, degrees, units, wiring))
    own, how = degrees[: z.shape[1]], Transform(*kind)  # type: ignore[arg-type]
    x, log_det = torch.zeros_like(z), torch.zeros_like(z)
    for degree in own.unique():
        found, change = transform(z, made(x, network, activation), how, inverse=True)
        x = torch.where(own == degree, found, x)
        log_det = torch.where(own == degree, change, log_det)
    return x, log_det.sum(1)


def made_inverse_backward(
    grad_x: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    context: Tensor | None,
    degrees: Tensor,
    units: Sequence[int],
    wiring: Sequence[int],
    activation: str,
    *kind: str | int | Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, weight, bias and context (empty if there is none), by implicit differentiation.

    With z = F(x), v = dL/dz solves J^T v = dL/dx, J = dF/dx triangular in the order of the degrees: from the
    last degree to the first, one vector-Jacobian product each, all through the graph of one pass at x.
    """
    with torch.inference_mode(False), torch.enable_grad():
        given = (x, weight, bias) if context is None else (x, weight, bias, context)
        leaves = [t.clone().requires_grad_() for t in given]
        terms = None if context is None else leaves[3]
        network = list(layers(leaves[1], leaves[2], terms, degrees, units, wiring))
        how = Transform(*kind)  # type: ignore[arg-type]
        z, log_det = transform(leaves[0], made(leaves[0], network, activation), how, inverse=False)
        # log_det of the inverse is that of F with the other sign, as a function of x and the parameters.
        change = grad_log_det[:, None].expand_as(log_det)
        own, v, slope = degrees[: x.shape[1]], torch.zeros_like(x), log_det.detach().exp()
        for degree in own.unique().flip(0):
            (pulled,) = torch.autograd.grad((z, log_det), leaves[:1], (v, change), retain_graph=True)
            v = torch.where(own == degree, (grad_x - pulled) / slope, v)
        grads = torch.autograd.grad((z, log_det), leaves[1:], (-v, -change), allow_unused=True)
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves[1:], grads, strict=True)]
    return v, filled[0], filled[1], x.new_empty(0) if context is None else filled[2]

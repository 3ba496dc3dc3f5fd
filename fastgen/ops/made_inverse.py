"""The op `made_inverse`: the inverse of a masked autoregressive flow at the cost of about one pass.

Triton covers the GPU: what a degree adds are small products, which it says well together with the splines of
`rq_spline` and the activations of `linear`; CUDA C++ would say them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen.ops._masked_network import Affine, MaskedNetwork, Spline
from fastgen.ops._registry import Op, register, vjp
from fastgen.ops.rq_spline import PARAMETRIZATIONS
from fastgen.reference import made_inverse as reference
from fastgen.reference.affine_coupling import SCALE_MAPS
from fastgen.reference.linear import ACTIVATIONS

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def made_inverse(
    z: Tensor,
    network: MaskedNetwork,
    transform: Affine | Spline,
    *,
    addends: Sequence[Tensor | None] | None = None,
    gates: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Invert z_d = T(x_d; network(x)_d), where the network's outputs for d see lower degrees than d's alone.

    This is sampling of a masked autoregressive flow (Papamakarios et al. 2017, arXiv:1705.07057), and the
    density of an inverse one (Kingma et al. 2016, arXiv:1606.04934). By running the network once for each
    feature it takes D passes. Here every hidden unit is computed once, as soon as the features of its degree
    are known, so that the whole inverse costs about one pass, and D passes with the reference.

    Row i's bits do not depend on the other rows, the batch or the threads: each sum starts at the bias and
    the addend and takes its inputs one by one, by degree; what is masked is never read. NaN and infinity in
    one row leave the others alone.

    Gradients are those of implicit differentiation: the graph of one pass of the network at x serves a
    triangular system, in place of a graph of D passes. It is solved by PyTorch, with one vector-Jacobian
    product for each distinct degree of the features, so that gradients take the time of about D backward
    passes, and the memory of one.

    Args:
        z: (N, D) float32, float64 or bfloat16. Computed in float64 for float64, else in float32; bfloat16
            results are rounded once.
        network: see `fastgen.ops.MaskedNetwork`; its weights are float64 if z is, else float32 or bfloat16.
        transform: `Affine(...)` or `Spline(...)`: T, and how the parameters say it.
        addends: for each layer a term of its units, (N, units) floating, or None: what a context adds.
        gates: for each layer a factor of its units, likewise.

    Returns:
        x (N, D) and log|det dx/dz| in nats, (N,), both in z's dtype.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    x, log_det = torch.ops.fastgen.made_inverse(*arguments(z, network, transform, addends, gates))
    return x, log_det


def arguments(
    z: Tensor,
    network: MaskedNetwork,
    transform: Affine | Spline,
    addends: Sequence[Tensor | None] | None = None,
    gates: Sequence[Tensor | None] | None = None,
) -> tuple[Any, ...]:
    """The flat arguments of the op: weights, biases, terms and degrees end to end."""
    if not isinstance(transform, (Affine, Spline)):
        raise TypeError(f"transform is {type(transform).__name__}, wanted Affine(...) or Spline(...)")
    if not isinstance(network, MaskedNetwork):
        raise TypeError(f"network is {type(network).__name__}, wanted a MaskedNetwork")
    flat = transform.flat()
    network.check(transform.parameters)
    units = network.units
    _check_z(z, network.weights[0], units[0])
    wiring = [
        reference.ACTIVATED * bool(a) + reference.RESIDUAL * bool(r)
        for a, r in zip(network.activated, network.residual, strict=True)
    ]
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    terms: list[Tensor] = []
    for k in range(len(wiring)):
        for name, wire, given in (("addends", reference.ADDEND, addends), ("gates", reference.GATE, gates)):
            term = _term(f"{name}[{k}]", k, given, z, units, name)
            if term is not None:
                wiring[k] += wire
                terms.append(term.to(wide))
    return (
        z.contiguous(),
        torch.cat([w.reshape(-1) for w in network.weights]),
        torch.cat([b.to(wide) for b in network.biases]),
        torch.cat(terms, 1) if terms else None,
        torch.cat([d.to(torch.int64) for d in network.degrees]),
        units,
        wiring,
        network.activation,
        *flat,
    )


def _check_z(z: Tensor, weight: Tensor, features: int) -> None:
    if not isinstance(z, Tensor) or z.layout != torch.strided or z.dtype not in _DTYPES:
        kind = z.dtype if isinstance(z, Tensor) and z.layout == torch.strided else type(z).__name__
        raise TypeError(f"z is {kind}, wanted a dense float32, float64 or bfloat16 tensor")
    if z.dim() != 2 or z.shape[1] != features:
        raise ValueError(f"z has shape {tuple(z.shape)}, wanted (N, {features}) for this network")
    if z.device != weight.device:
        raise ValueError(f"z is on {z.device}, wanted {weight.device} as weights[0]")
    if (z.dtype == torch.float64) != (weight.dtype == torch.float64):
        wanted = "torch.float64" if weight.dtype == torch.float64 else "torch.float32 or torch.bfloat16"
        raise TypeError(f"z is {z.dtype}, wanted {wanted} for weights of {weight.dtype}")


def _term(
    name: str, k: int, given: Sequence[Tensor | None] | None, z: Tensor, units: list[int], whole: str
) -> Tensor | None:
    """The term or factor of layer k, or None."""
    if given is None:
        return None
    if len(given) != len(units) - 1:
        raise ValueError(f"{whole} has {len(given)} entries, wanted {len(units) - 1}, one for each layer")
    term = given[k]
    if term is None:
        return None
    if not isinstance(term, Tensor) or term.layout != torch.strided or not term.is_floating_point():
        kind = term.dtype if isinstance(term, Tensor) else type(term).__name__
        raise TypeError(f"{name} is {kind}, wanted a dense floating tensor")
    if term.shape != (len(z), units[k + 1]):
        raise ValueError(f"{name} has shape {tuple(term.shape)}, wanted {(len(z), units[k + 1])}")
    if term.device != z.device:
        raise ValueError(f"{name} is on {term.device}, wanted {z.device} as z")
    return term


def _check_values(z: Tensor, weight: Tensor, bias: Tensor, context: Tensor | None, *rest: Any) -> None:
    degrees, units, wiring, _, kind, _, _, tails, numbers = rest
    of_units = torch.split(degrees, list(units[:-1]))
    for k, wires in enumerate(wiring):
        if wires & reference.RESIDUAL and bool((of_units[k + 1] < of_units[k - 1]).any()):
            raise ValueError(
                f"residual[{k}] is True, but degrees[{k + 1}] has units of lower degree than degrees[{k - 1}]"
            )
    if kind == "spline" and tails == "none" and bool((z.abs() > numbers[1]).any()):
        worst = z[z.abs() > numbers[1]][0].item()
        raise ValueError(
            f"z holds {worst}, wanted numbers from {-numbers[1]} to {numbers[1]}, since tails is None"
        )


def _fake(z: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z), z.new_empty(z.shape[:1])


def _fake_backward(
    grad_x: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    context: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    empty = x.new_empty(0) if context is None else torch.empty_like(context)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), empty


def _inverse(
    function: Callable[..., tuple[Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Hands z to `function` as float32 or float64 and rounds what it returns; autocast changes nothing."""

    def run(z: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            x, log_det = function(z.float() if z.dtype == torch.bfloat16 else z, *arguments)
        return x.to(z.dtype), log_det.to(z.dtype)

    return run


def _gradients(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """The same for the backward pass, whose gradients of weights have the dtype of the weights."""

    def run(grad_x: Tensor, grad_log_det: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        rows = (t.float() if t.dtype == torch.bfloat16 else t for t in (grad_x, grad_log_det, x))
        with torch.autocast(x.device.type, enabled=False):
            grad_z, *others = function(*rows, *arguments)
        return grad_z.to(x.dtype), *others

    return run


def _native(z: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *network, activation, kind, form, bins, tails, numbers = arguments
    forms = SCALE_MAPS if kind == "affine" else PARAMETRIZATIONS
    x, log_det = torch.empty_like(z), z.new_empty(len(z))
    torch.ops.fastgen_native.made_inverse(
        x, log_det, z, *network, list(ACTIVATIONS).index(activation), forms.index(form), bins, tails, numbers
    )
    return x, log_det


def _triton(z: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    from fastgen.kernels import made_inverse as kernels  # noqa: PLC0415  triton is optional

    return kernels.made_inverse(z, *arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.units, ctx.wiring, ctx.activation, kind, form, bins, tails, numbers = inputs
    ctx.transform = (kind, form, bins, tails, numbers)
    ctx.save_for_backward(*tensors, output[0])


def _backward(ctx: Any, grad_x: Tensor, grad_log_det: Tensor) -> tuple[Any, ...]:
    z, weight, bias, context, degrees, x = ctx.saved_tensors
    options = (degrees, ctx.units, ctx.wiring, ctx.activation, *ctx.transform)
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        given = [z, weight, bias] + ([] if context is None else [context])

        def again(*leaves: Tensor) -> tuple[Tensor, Tensor]:
            terms = leaves if context is not None else (*leaves, None)
            return _inverse(reference.made_inverse)(*terms, *options)

        grads = vjp(again, given, (grad_x, grad_log_det))
    else:
        grads = torch.ops.fastgen.made_inverse_backward(
            grad_x.contiguous(), grad_log_det.contiguous(), x, weight, bias, context, *options
        )
    return *grads[:3], None if context is None else grads[3], *(None,) * len(options)


_NETWORK = (
    " Tensor weight, Tensor bias, Tensor? context, Tensor degrees, SymInt[] units, int[] wiring,"
    " str activation, str kind, str form, SymInt bins, str tails, float[] numbers)"
)

register(
    Op(
        name="made_inverse",
        schema="(Tensor z," + _NETWORK + " -> (Tensor, Tensor)",
        fake=_fake,
        implementations={
            "reference": _inverse(reference.made_inverse),
            "native": _inverse(_native),
            "triton": _inverse(_triton),
        },
        check_values=_check_values,
        setup_context=_setup_context,
        backward=_backward,
    )
)

register(
    Op(
        name="made_inverse_backward",
        schema="(Tensor grad_x, Tensor grad_log_det, Tensor x,"
        + _NETWORK
        + " -> (Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_backward,
        implementations={"reference": _gradients(reference.made_inverse_backward)},
        check_values=lambda *arguments: None,
    )
)

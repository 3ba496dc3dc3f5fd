"""Rational-quadratic splines of a coupling layer: raw parameters as a network puts them out, 8 bins.

`bytes` counts what must move once: x, the parameters, y, the log-determinants, and their gradients.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Match, Peer, Work, needs, needs_compiler
from fastgen.bench.matching import close
from fastgen.bench.peers import nflows_spline, torch_spline, zuko_spline
from fastgen.bench.peers.compiling import compiled
from fastgen.tolerances import MATCH

Spline = Callable[..., tuple[Tensor, Tensor]]
BOUND = 3.0
OURS: dict[bool, Spline] = {
    False: fastgen.ops.rq_spline,
    True: partial(fastgen.ops.rq_spline, parametrization="softclip"),
}


def _inputs(
    rows: int, width: int, bins: int, inverse: bool, dtype: torch.dtype, backward: bool, device: str
) -> Inputs:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    tensors = {"x": normal(rows, width), "params": normal(rows, width, 3 * bins - 1)}
    if backward:
        tensors |= {"grad_y": normal(rows, width), "grad_log_det": normal(rows)}
    return tensors | {"bins": bins, "inverse": inverse, "bound": BOUND}


def _build(spline: Spline, inputs: Inputs) -> Call:
    """Return the call that transforms, or, where gradients are given, transforms and differentiates."""
    options = {name: inputs[name] for name in ("bins", "inverse", "bound")}
    if "grad_y" not in inputs:
        return lambda: spline(inputs["x"], inputs["params"], **options)
    with torch.inference_mode(False):
        leaves = [inputs[name].clone().requires_grad_() for name in ("x", "params")]
        grads = [inputs[name].clone() for name in ("grad_y", "grad_log_det")]

    def run() -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(spline(*leaves, **options), leaves, grads)

    return run


def _compiled(inputs: Inputs) -> Call:
    return _build(compiled(torch_spline.spline), inputs)


def _on_reference(build: Callable[[Inputs], Call], inputs: Inputs) -> Call:
    call = build(inputs)

    def run() -> tuple[Tensor, ...]:
        with fastgen.use_backend("reference"):
            return call()

    return run


def _gradients(inputs: Inputs) -> Call:
    """Return the call of the backward pass alone, as autograd makes it."""
    tensors = [inputs[name] for name in ("grad_y", "grad_log_det", "x", "params")]
    box = (-inputs["bound"], inputs["bound"]) * 2
    options = (inputs["bins"], inputs["inverse"], "linear", *box, *[1e-3] * 3, 1.0, "softmax", True)
    return lambda: torch.ops.fastgen.rq_spline_backward(*tensors, *options)


def _peers(softclip: bool, match: Callable[..., Match]) -> tuple[Peer, ...]:
    ours = partial(_build, OURS[softclip])
    reference = Peer("reference", partial(_on_reference, ours), match)
    if softclip:
        return reference, Peer("zuko", partial(_build, zuko_spline.spline), match, missing=needs("zuko"))
    return (
        reference,
        Peer("eager", partial(_build, torch_spline.spline), match),
        Peer("torch.compile", _compiled, match, missing=needs_compiler),
        Peer("nflows", partial(_build, nflows_spline.spline), match, missing=needs("nflows")),
    )


def _work(rows: int, width: int, bins: int, dtype: torch.dtype, backward: bool) -> Work:
    numbers = rows * width * (1 + 3 * bins - 1 + 1) + rows  # x, parameters, y, log-determinants
    if backward:
        numbers += rows * width * (2 * (1 + 3 * bins - 1) + 1) + rows  # read again, and the gradients
    return Work(items=rows * width, item="elements", bytes=dtype.itemsize * numbers)


def _case(
    what: str,
    rows: int,
    width: int,
    bins: int = 8,
    *,
    dtype: torch.dtype = torch.float32,
    softclip: bool = False,
    quick: bool = False,
) -> Case:
    backward = "backward" in what
    match = close(*MATCH["rq_spline" + " forward and backward" * backward])
    remarks = ["float64"] * (dtype == torch.float64) + ["softclip"] * softclip
    return Case(
        op="rq_spline",
        name=" ".join([f"{rows}x{width}, {bins} bins, {what}", *remarks]),
        inputs=partial(_inputs, rows, width, bins, "inverse" in what, dtype, backward),
        fastgen=partial(_build, OURS[softclip]),
        peers=_peers(softclip, match),
        work=_work(rows, width, bins, dtype, backward),
        quick=quick,
    )


def _backward_case(what: str, rows: int, width: int, bins: int) -> Case:
    match = close(*MATCH["rq_spline backward"])
    return Case(
        op="rq_spline",
        name=f"{rows}x{width}, {bins} bins, {what}",
        inputs=partial(_inputs, rows, width, bins, "inverse" in what, torch.float32, True),
        fastgen=_gradients,
        peers=(Peer("reference", partial(_on_reference, _gradients), match),),
        work=_work(rows, width, bins, torch.float32, True),
        quick=True,
        registered="rq_spline_backward",
    )


CASES = (
    _case("forward", 4096, 32),
    _case("inverse", 4096, 32),
    _case("forward and backward", 4096, 32),
    _case("inverse and backward", 4096, 32),
    _case("forward", 4096, 32, dtype=torch.float64),
    _case("forward", 4096, 32, softclip=True),
    _case("inverse", 4096, 32, softclip=True),
    _case("forward", 64, 2),
    _case("forward", 33, 5, 4, quick=True),
    _case("inverse", 33, 5, 4, quick=True),
    _case("forward", 7, 3, 5, softclip=True, quick=True),
    _backward_case("backward of the forward pass", 9, 4, 4),
    _backward_case("backward of the inverse pass", 9, 4, 4),
)

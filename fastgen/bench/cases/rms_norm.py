"""Root-mean-square norms of a transformer's rows, one row and many, and the gradients.

`bytes` counts what must move once: x, the residual, the sum, y, and their gradients.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs_compiler
from fastgen.bench.matching import close
from fastgen.bench.peers import torch_norm
from fastgen.bench.peers.compiling import compiled
from fastgen.tolerances import MATCH

EPS = 1e-5
Norm = Callable[..., Any]


def _inputs(rows: int, width: int, residual: bool, backward: bool, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    made = {"x": normal(rows, width), "weight": normal(width), "residual": None, "grad": None}
    return (
        made
        | ({"residual": normal(rows, width)} if residual else {})
        | ({"grad": normal(rows, width)} if backward else {})
    )


def _build(norm: Norm, inputs: Inputs) -> Call:
    """Return the call of the norm or, where a gradient is given, of the norm and its derivative."""
    x, weight, residual, grad = (inputs[name] for name in ("x", "weight", "residual", "grad"))
    if grad is None:
        return lambda: norm(x, weight, eps=EPS, residual=residual)
    with torch.inference_mode(False):
        leaves, grad = [x.clone().requires_grad_(), weight.clone().requires_grad_()], grad.clone()

    def run() -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(norm(*leaves, eps=EPS), leaves, grad)

    return run


def _gradients(op: str, inputs: Inputs) -> Call:
    """Return the call of the backward pass alone, as autograd makes it."""
    backward = getattr(torch.ops.fastgen, f"{op}_backward")
    return lambda: backward(inputs["grad"], inputs["x"], inputs["weight"], EPS)


def _on_reference(build: Callable[[Inputs], Call], inputs: Inputs) -> Call:
    call = build(inputs)

    def run() -> Any:
        with fastgen.use_backend("reference"):
            return call()

    return run


def norm_case(
    op: str, ours: Norm, theirs: Norm, rows: int, width: int, what: str = "", *, quick: bool = False
) -> Case:
    """Return a case of rms_norm or layer_norm; `what`: "residual", "forward and backward", "gradients"."""
    residual, backward, alone = what == "residual", "backward" in what, what == "gradients"
    build = partial(_gradients, op) if alone else partial(_build, ours)
    match = close(*MATCH["norm" + " backward" * (backward or alone)])
    peers = [Peer("reference", partial(_on_reference, build), match)]
    if not alone:
        peers += [
            Peer("eager", partial(_build, theirs), match),
            Peer("torch.compile", partial(_build, compiled(theirs)), match, missing=needs_compiler),
        ]
    passes = 4 if residual else 5 if backward else 3 if alone else 2
    return Case(
        op=op,
        name=f"{rows}x{width} {what}".strip(),
        inputs=partial(_inputs, rows, width, residual, backward or alone),
        fastgen=build,
        peers=tuple(peers),
        work=Work(items=rows * width, item="numbers", bytes=4 * passes * rows * width),
        quick=quick,
        registered=f"{op}_backward" if alone else "",
    )


_case = partial(norm_case, "rms_norm", fastgen.ops.rms_norm, torch_norm.rms_norm)

CASES = (
    _case(1, 576),
    _case(1, 576, "residual"),
    _case(512, 576),
    _case(512, 576, "residual"),
    _case(8192, 2048, "residual"),
    _case(4096, 576, "forward and backward"),
    _case(5, 37, quick=True),
    _case(3, 20, "residual", quick=True),
    _case(67, 19, "gradients", quick=True),
)

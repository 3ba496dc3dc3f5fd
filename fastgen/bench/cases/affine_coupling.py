"""Affine couplings, from the parameters that a network put out, of vectors and of images.

`bytes` counts what must move once: x, the parameters, y, the log-determinants, and their gradients.

Of 4096 x 1536, forward, that is 101 MB, 3.05 ms at a copy bandwidth of 33 GB/s on two cores. What eager takes
hangs on its temporaries: 21 to 31 ms where all of them lay in memory that it had before, and 34 to 47 ms with
12,000 to 18,000 pages taken anew in a call, as the C library decides. So the most against it is 7 to 15, and
the inverse, whose negations need more temporaries (up to 37,000 pages), shows more.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Match, Peer, Work, needs, needs_compiler
from fastgen.bench.matching import close
from fastgen.bench.peers import affine_flows
from fastgen.bench.peers.compiling import compiled
from fastgen.tolerances import MATCH

Coupling = Callable[..., tuple[Tensor, Tensor]]

# By scale map: how fastgen is asked for what a peer does.
OPTIONS: dict[str, dict[str, Any]] = {
    "tanh": {"clamp": affine_flows.CLAMP},
    "sigmoid": {"min_scale": 1e-3},
    "exp": {"layout": "interleaved"},
    "softclip": {"layout": "interleaved", "clamp": -math.log(1e-3)},
}
PEERS: dict[str, tuple[tuple[str, Coupling, Callable[[], str | None]], ...]] = {
    "tanh": (
        ("eager", affine_flows.eager, lambda: None),
        ("torch.compile", compiled(affine_flows.eager), needs_compiler),
    ),
    "sigmoid": (("nflows", affine_flows.nflows, needs("nflows")),),
    "exp": (("normflows", affine_flows.normflows, needs("normflows")),),
    "softclip": (("zuko", affine_flows.zuko, needs("zuko")),),
}


def _inputs(
    row: tuple[int, ...], rows: int, inverse: bool, dtype: torch.dtype, backward: bool, device: str
) -> Inputs:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    tensors = {"x": normal(rows, *row), "params": normal(rows, 2 * row[0], *row[1:])}
    if backward:
        tensors |= {"grad_y": normal(rows, *row), "grad_log_det": normal(rows)}
    return tensors | {"inverse": inverse}


def _build(coupling: Coupling, inputs: Inputs) -> Call:
    """Return the call that transforms, or, where gradients are given, transforms and differentiates."""
    inverse = inputs["inverse"]
    if "grad_y" not in inputs:
        return lambda: coupling(inputs["x"], inputs["params"], inverse=inverse)
    with torch.inference_mode(False):
        leaves = [inputs[name].clone().requires_grad_() for name in ("x", "params")]
        grads = [inputs[name].clone() for name in ("grad_y", "grad_log_det")]

    def run() -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(coupling(*leaves, inverse=inverse), leaves, grads)

    return run


def _in_place(x: Tensor, params: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The coupling in the memory of a copy, since every call finds the same inputs."""
    return fastgen.ops.affine_coupling(x.clone(), params, inplace=True, **options)


def _gradients(scale_map: str, inputs: Inputs) -> Call:
    """Return the call of the backward pass alone, as autograd makes it."""
    tensors = [inputs[name] for name in ("grad_y", "grad_log_det", "x", "params")]
    options = {"layout": "halves", "clamp": 2.0, "min_scale": 0.0} | OPTIONS[scale_map]
    layout, clamp, min_scale = (options[name] for name in ("layout", "clamp", "min_scale"))
    fixed = (None, 0, scale_map, layout, "shift", clamp, min_scale, inputs["inverse"])
    return lambda: torch.ops.fastgen.affine_coupling_backward(*tensors, *fixed)


def _on_reference(build: Callable[[Inputs], Call], inputs: Inputs) -> Call:
    call = build(inputs)

    def run() -> tuple[Tensor, ...]:
        with fastgen.use_backend("reference"):
            return call()

    return run


def _case(
    what: str,
    row: tuple[int, ...],
    rows: int,
    *,
    scale_map: str = "tanh",
    dtype: torch.dtype = torch.float32,
    quick: bool = False,
) -> Case:
    backward, alone = "backward" in what, "gradients" in what
    coupling = _in_place if "in place" in what else fastgen.ops.affine_coupling
    ours = partial(coupling, scale_map=scale_map, **OPTIONS[scale_map])
    build = partial(_gradients, scale_map) if alone else partial(_build, ours)
    match: Callable[..., Match] = close(*MATCH["affine_coupling"])
    others = () if alone or "in place" in what else PEERS[scale_map]
    peers = (
        Peer("reference", partial(_on_reference, build), match),
        *(Peer(name, partial(_build, other), match, missing=missing) for name, other, missing in others),
    )
    numbers = rows * math.prod(row) * (4 + 7 * (backward or alone)) - 4 * alone + rows
    return Case(
        op="affine_coupling",
        name=f"{'x'.join(map(str, (rows, *row)))} {scale_map}, {what}",
        inputs=partial(_inputs, row, rows, "inverse" in what, dtype, backward or alone),
        fastgen=build,
        peers=peers,
        work=Work(items=rows * math.prod(row), item="elements", bytes=dtype.itemsize * numbers),
        quick=quick,
        registered="affine_coupling_backward" if alone else "affine_coupling_" * ("in place" in what),
    )


CASES = (
    _case("forward", (1536,), 4096),
    _case("inverse", (1536,), 4096),
    _case("forward and backward", (1536,), 4096),
    _case("forward", (1536,), 4096, scale_map="sigmoid"),
    _case("forward", (1536,), 4096, scale_map="softclip"),
    _case("forward", (24, 16, 16), 64, scale_map="exp"),
    _case("inverse", (24, 16, 16), 64, scale_map="exp"),
    _case("forward", (6,), 65536),
    _case("forward, in place on a copy", (1536,), 4096),
    _case("forward", (5,), 33, quick=True),
    _case("inverse", (6, 4, 3), 5, scale_map="exp", quick=True),
    _case("forward", (19,), 7, scale_map="sigmoid", quick=True),
    _case("inverse", (19,), 7, scale_map="softclip", quick=True),
    _case("forward, in place on a copy", (5,), 9, quick=True),
    _case("gradients", (21,), 9, quick=True),
    _case("gradients of the inverse", (5, 2, 3), 4, scale_map="exp", quick=True),
)

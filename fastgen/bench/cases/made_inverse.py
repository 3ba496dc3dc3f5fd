"""Sampling of masked autoregressive flows: one layer's inverse, with networks as flow libraries build them.

`flops` counts each weight that a mask leaves once a row, two operations each: what one pass takes.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs
from fastgen.bench.matching import close
from fastgen.bench.peers import nflows_made, zuko_made
from fastgen.ops import Affine, MaskedNetwork, Spline
from fastgen.ops.made_inverse import arguments
from fastgen.tolerances import MATCH

SAME = close(*MATCH["made_inverse"])
RESIDUAL = "residual"
"""Layers as nflows wires them: two residual blocks, activated inputs."""


def network(
    features: int, hidden: Sequence[int], parameters: int, *, wired: str, activation: str = "relu"
) -> MaskedNetwork:
    """Return a network of random weights, its degrees dealt out in turn as nflows and zuko do it."""
    generator = torch.Generator().manual_seed(21)
    sizes = [features, *hidden, features * parameters]
    degrees = [1 + torch.arange(features)]
    degrees += [min(1, features - 1) + torch.arange(n) % max(1, features - 1) for n in hidden]
    layers = range(len(sizes) - 1)
    second = [wired == RESIDUAL and 0 < k < len(hidden) and k % 2 == 0 for k in layers]
    return MaskedNetwork(
        weights=[
            0.6 * torch.randn(sizes[k + 1], sizes[k], generator=generator) * sizes[k] ** -0.5 for k in layers
        ],
        biases=[0.1 * torch.randn(sizes[k + 1], generator=generator) for k in layers],
        degrees=degrees,
        activation=activation,
        activated=[0 < k < len(hidden) or (k > 0 and wired != RESIDUAL) for k in layers],
        residual=second,
    )


def flops(made: MaskedNetwork, rows: int) -> float:
    """Return the operations of one pass over the weights that the degrees leave."""
    above = [*made.degrees[1:], made.degrees[0].repeat_interleave(made.units[-1] // made.units[0])]
    kept = [
        (high[:, None] > low if k + 1 == len(made.weights) else high[:, None] >= low).sum()
        for k, (high, low) in enumerate(zip(above, made.degrees, strict=True))
    ]
    return 2.0 * rows * float(sum(kept))


def _inputs(
    rows: int, made: MaskedNetwork, transform: Affine | Spline, dtype: torch.dtype, device: str
) -> Inputs:
    generator = torch.Generator().manual_seed(22)
    z = torch.randn(rows, made.units[0], generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    moved = made._replace(
        weights=[w.to(device, dtype) for w in made.weights],
        biases=[b.to(device, wide) for b in made.biases],
        degrees=[d.to(device) for d in made.degrees],
    )
    return {"z": z.to(device, wide), "network": moved, "transform": transform}


def _fastgen(inputs: Inputs) -> Call:
    return lambda: fastgen.ops.made_inverse(**inputs)


def _gradients(inputs: Inputs) -> Call:
    """Return the call of the backward pass alone, as autograd makes it."""
    _, *rest = arguments(**inputs)
    x, log_det = fastgen.ops.made_inverse(**inputs)
    return lambda: torch.ops.fastgen.made_inverse_backward(2 * x, torch.ones_like(log_det), x, *rest)


def _on_reference(build: Callable[[Inputs], Call], inputs: Inputs) -> Call:
    call = build(inputs)

    def run() -> tuple[Tensor, ...]:
        with fastgen.use_backend("reference"):
            return call()

    return run


def _case(
    name: str,
    rows: int,
    made: MaskedNetwork,
    transform: Affine | Spline,
    peers: tuple[Peer, ...] = (),
    *,
    dtype: torch.dtype = torch.float32,
    backward: bool = False,
    quick: bool = False,
) -> Case:
    build = _gradients if backward else _fastgen
    match = close(*MATCH["made_inverse backward"]) if backward else SAME
    return Case(
        op="made_inverse",
        name=name,
        inputs=partial(_inputs, rows, made, transform, dtype),
        fastgen=build,
        peers=(Peer("reference", partial(_on_reference, build), match), *peers),
        work=Work(items=rows, item="samples", flops=flops(made, rows) * (5 if backward else 1)),
        quick=quick,
        registered="made_inverse_backward" if backward else "",
    )


def _nflows() -> Peer:
    build = partial(nflows_made.build, nflows_made.nflows_layer)
    return Peer("nflows", build, SAME, missing=needs("nflows"))


def _normflows() -> Peer:
    build = partial(nflows_made.build, nflows_made.normflows_layer)
    return Peer("normflows", build, SAME, missing=needs("normflows"))


def _zuko() -> Peer:
    return Peer("zuko", zuko_made.build, SAME, zuko_made.unpack, needs("zuko"))


LOG_SLOPE = 6.907755278982137  # -log(0.001), zuko's default
NFLOWS = Affine("softplus", min_scale=1e-3)
ZUKO = Affine("softclip", clamp=LOG_SLOPE)
ZUKO_SPLINE = Spline(8, parametrization="softclip")
NORMFLOWS_SPLINE = Spline(8, bound=3.0)

SMALL = network(5, [12] * 3, 2, wired=RESIDUAL, activation="tanh")
CURVED = network(4, [9, 7], ZUKO_SPLINE.parameters, wired="plain")
BLOCKS = network(64, [256] * 5, 2, wired=RESIDUAL)
PLAIN = network(64, [256] * 2, 2, wired="plain")
SPLINES = network(32, [64] * 2, ZUKO_SPLINE.parameters, wired="plain")
SPLINE_BLOCKS = network(32, [128] * 5, NORMFLOWS_SPLINE.parameters, wired=RESIDUAL)

CASES = (
    _case("affine D 64, 256 x 2 blocks, 512 samples", 512, BLOCKS, NFLOWS, (_nflows(),)),
    _case("affine D 64, 256 x 2 blocks, 1 sample", 1, BLOCKS, NFLOWS, (_nflows(),)),
    _case(
        "affine D 64, 256 x 2 blocks, 512 samples, bf16 weights", 512, BLOCKS, NFLOWS, dtype=torch.bfloat16
    ),
    _case("affine D 64, 256 x 2, 512 samples", 512, PLAIN, ZUKO, (_zuko(),)),
    _case("spline D 32, 64 x 2, 512 samples", 512, SPLINES, ZUKO_SPLINE, (_zuko(),)),
    _case("spline D 32, 128 x 2 blocks, 512 samples", 512, SPLINE_BLOCKS, NORMFLOWS_SPLINE, (_normflows(),)),
    _case("affine D 64, 256 x 2 blocks, 512 samples, gradients", 512, BLOCKS, NFLOWS, backward=True),
    _case("affine D 5, 12 x 1 block, 6 samples", 6, SMALL, Affine(), quick=True),
    _case("spline D 4, 9 and 7, 6 samples", 6, CURVED, ZUKO_SPLINE, (_zuko(),), quick=True),
    _case("affine D 5, 12 x 1 block, 6 samples, gradients", 6, SMALL, Affine(), backward=True, quick=True),
)

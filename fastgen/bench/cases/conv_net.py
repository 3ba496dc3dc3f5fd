"""Networks inside of Glow's couplings, of the sizes of its three levels for images of 32 x 32.

`bytes` counts x, y and the weights, `flops` the products.
"""

from functools import partial

import torch

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs_compiler
from fastgen.bench.matching import close
from fastgen.bench.peers import convolutions
from fastgen.tolerances import MATCH


def _inputs(shape: tuple[int, ...], hidden: int, dim: int, dtype: torch.dtype, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(9)
    channels = shape[dim]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    sizes = ((hidden, channels, 3), (hidden, hidden, 1), (2 * channels, hidden, 3))
    return {
        "x": normal(*shape),
        "weights": [(i * k * k) ** -0.5 * normal(o, i, k, k) for o, i, k in sizes],
        "biases": [normal(o) for o, _, _ in sizes],
        "dim": dim,
    }


def _fastgen(inputs: Inputs) -> Call:
    return lambda: fastgen.ops.conv_net(**inputs)


def _reference(inputs: Inputs) -> Call:
    def run() -> torch.Tensor:
        with fastgen.use_backend("reference"):
            return fastgen.ops.conv_net(**inputs)

    return run


SAME = close(*MATCH["conv_net"])
PEERS = (
    Peer("reference", _reference, SAME),
    Peer("eager", convolutions.build, SAME),
    Peer("torch.compile", partial(convolutions.build, compile=True), SAME, missing=needs_compiler),
)


def _case(
    shape: tuple[int, ...],
    hidden: int,
    *,
    dim: int = 1,
    dtype: torch.dtype = torch.float32,
    quick: bool = False,
) -> Case:
    channels, numbers = shape[dim], torch.Size(shape).numel()
    products = 9 * channels * hidden + hidden * hidden + 18 * channels * hidden
    remark = ", channels last" if dim == -1 else ""
    return Case(
        op="conv_net",
        name=f"{'x'.join(map(str, shape))}, hidden {hidden}{remark}",
        inputs=partial(_inputs, shape, hidden, dim, dtype),
        fastgen=_fastgen,
        peers=PEERS,
        work=Work(
            items=numbers // channels,
            item="pixels",
            bytes=dtype.itemsize * (3 * numbers + products),
            flops=2 * products * (numbers // channels),
        ),
        quick=quick,
    )


CASES = (
    *(_case(shape, 64) for shape in ((16, 6, 16, 16), (16, 12, 8, 8), (16, 24, 4, 4))),
    *(_case(shape, 256) for shape in ((16, 6, 16, 16), (16, 12, 8, 8), (16, 24, 4, 4))),
    _case((16, 16, 16, 6), 64, dim=-1),
    _case((1, 6, 16, 16), 64),
    _case((3, 2, 4, 5), 7, quick=True),
    _case((2, 3, 4, 5), 6, dim=-1, quick=True),
)

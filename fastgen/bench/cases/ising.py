"""The Ising model at the critical temperature: heat-bath sweeps of many chains from random spins.

The reference, which is written to be read, gets a case of its own that it ends in seconds.
"""

from functools import partial

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs, needs_compiler
from fastgen.bench.matching import exact, statistical
from fastgen.bench.peers import thrml_ising, torch_ising

BETA = 0.44


def expected_planes(sites: int = 32) -> float:
    """Return how many bits of `sites` random numbers it takes on average to tell each from its threshold.

    One site is undecided after k bits with probability 2^-k, so all are decided with (1 - 2^-k)^sites.
    """
    return sum(1 - (1 - 2.0**-k) ** sites for k in range(33))


def _inputs(chains: int, height: int, width: int, sweeps: int, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(chains * height * width)
    spins = 2 * torch.randint(2, (chains, height, width), generator=generator, dtype=torch.int8) - 1
    return {"spins": spins.to(device), "beta": BETA, "sweeps": sweeps, "seed": 7}


def _fastgen(inputs: Inputs) -> Call:
    return lambda: fastgen.ops.ising(**inputs).spins


def _reference(inputs: Inputs) -> Call:
    def run() -> Tensor:
        with fastgen.use_backend("reference"):
            return fastgen.ops.ising(**inputs).spins

    return run


def _product(spins: Tensor, *shifts: int) -> Tensor:
    """Return the mean over the lattice of the product of two spins `shifts` apart, one a chain."""
    spins = spins.float()
    return (spins * spins.roll(shifts, (-2, -1))).mean((1, 2))


SAME_DISTRIBUTION = statistical(
    magnetisation=lambda spins: spins.float().mean((1, 2)),
    its_square=lambda spins: spins.float().mean((1, 2)).square(),
    energy=lambda spins: -_product(spins, 1, 0) - _product(spins, 0, 1),
    diagonal=lambda spins: _product(spins, 1, 1),
)

REFERENCE = Peer("reference", _reference, exact)
TORCH = (
    Peer("eager roll and where", torch_ising.build_roll_and_where, SAME_DISTRIBUTION),
    Peer("eager sublattices", torch_ising.build_sublattices, SAME_DISTRIBUTION, torch_ising.join),
    Peer(
        "torch.compile roll and where",
        partial(torch_ising.build_roll_and_where, compile=True),
        SAME_DISTRIBUTION,
        missing=needs_compiler,
    ),
    Peer(
        "torch.compile sublattices",
        partial(torch_ising.build_sublattices, compile=True),
        SAME_DISTRIBUTION,
        torch_ising.join,
        needs_compiler,
    ),
)
THRML = Peer(
    "thrml",
    thrml_ising.build,
    SAME_DISTRIBUTION,
    thrml_ising.unpack,
    needs("thrml", remark=" (Python 3.11 or later)"),
)


def _case(size: tuple[int, int, int], sweeps: int, *peers: Peer, quick: bool = False) -> Case:
    spins = size[0] * size[1] * size[2]
    return Case(
        op="ising",
        name=f"{'x'.join(map(str, size))} beta {BETA}, {sweeps} sweeps",
        inputs=partial(_inputs, *size, sweeps),
        fastgen=_fastgen,
        peers=peers,
        work=Work(
            items=spins * sweeps,
            item="flips",
            bytes=2 * spins,
            draws=spins * sweeps * expected_planes() / 32,
        ),
        quick=quick,
    )


CASES = (
    _case((16, 512, 512), 10, *TORCH),
    _case((16, 128, 128), 100, *TORCH, THRML),
    _case((16, 128, 128), 2, REFERENCE),
    _case((128, 4, 64), 5, REFERENCE, *TORCH, THRML, quick=True),
)

"""Rotary position embedding of a transformer's queries. `bytes` counts x and y."""

from functools import partial

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs_compiler
from fastgen.bench.matching import close
from fastgen.bench.peers import torch_rope
from fastgen.tolerances import MATCH


def _inputs(shape: tuple[int, int, int, int], device: str) -> Inputs:
    generator = torch.Generator().manual_seed(4)
    _, positions, _, size = shape
    frequency = 10000.0 ** (-torch.arange(0, size, 2) / size)
    angle = torch.arange(positions)[:, None] * frequency
    made = {"x": torch.randn(*shape, generator=generator), "cos": angle.cos(), "sin": angle.sin()}
    return {name: x.to(device) for name, x in made.items()}


def _fastgen(interleaved: bool, inputs: Inputs) -> Call:
    return lambda: fastgen.ops.rope(**inputs, interleaved=interleaved)


def _reference(interleaved: bool, inputs: Inputs) -> Call:
    def run() -> Tensor:
        with fastgen.use_backend("reference"):
            return fastgen.ops.rope(**inputs, interleaved=interleaved)

    return run


SAME = close(*MATCH["rope"])


def _case(*shape: int, interleaved: bool = False, quick: bool = False) -> Case:
    batch, positions, heads, size = shape
    peers = [Peer("reference", partial(_reference, interleaved), SAME)]
    if not interleaved:
        peers += [
            Peer("eager", torch_rope.build, SAME),
            Peer("torch.compile", partial(torch_rope.build, compile=True), SAME, missing=needs_compiler),
        ]
    numbers = batch * positions * heads * size
    return Case(
        op="rope",
        name="x".join(map(str, shape)) + " interleaved" * interleaved,
        inputs=partial(_inputs, (batch, positions, heads, size)),
        fastgen=partial(_fastgen, interleaved),
        peers=tuple(peers),
        work=Work(items=numbers, item="numbers", bytes=8 * numbers),
        quick=quick,
    )


CASES = (
    _case(1, 1, 9, 64),
    _case(1, 512, 9, 64),
    _case(1, 512, 9, 64, interleaved=True),
    _case(8, 2048, 16, 64),
    _case(2, 3, 3, 10, quick=True),
    _case(1, 4, 2, 6, interleaved=True, quick=True),
)

"""Random numbers: fastgen.random against torch's own generator and against the reference.

`2^24` draws all numbers into one fresh tensor, so that both sides pay the system for 64 MiB of new memory;
`64 x 2^18` draws as many in 64 steps, as samplers do, and the memory is used again.
"""

from functools import partial

import torch
from torch import Tensor

import fastgen
from fastgen.bench.case import Call, Case, Inputs, Peer, Work, needs_compiler
from fastgen.bench.matching import exact, statistical
from fastgen.bench.peers import torch_random

BYTES = {"bits": 4, "uniform": 4, "normal": 4, "bernoulli": 1}


def _inputs(rows: int, n: int, steps: int, device: str) -> Inputs:
    ids = torch.arange(rows, device=device)
    return {"seed": 20, "sample_ids": ids, "n": n, "steps": steps, "p": 0.3, "device": device}


def _fastgen(name: str, inputs: Inputs) -> Call:
    draw = getattr(fastgen.random, name)
    if name == "bernoulli":
        draw = partial(draw, inputs["p"])
    seed, ids, n, steps = (inputs[key] for key in ("seed", "sample_ids", "n", "steps"))

    def run() -> Tensor:
        for step in range(steps):
            last = draw(seed, ids, step=step, n=n)
        return last

    return run


def _reference(name: str, inputs: Inputs) -> Call:
    call = _fastgen(name, inputs)

    def run() -> Tensor:
        with fastgen.use_backend("reference"):
            return call()

    return run


def _numbers(x: Tensor) -> Tensor:
    """Return draws as float; words of 32 bits, signed ones too, as fractions of 2^32."""
    return (
        (x.to(torch.int64) % 2**32).float() / 2**32 if x.dtype in (torch.uint32, torch.int32) else x.float()
    )


SAME_DISTRIBUTION = statistical(
    mean=lambda x: _numbers(x).mean(1),
    square=lambda x: _numbers(x).square().mean(1),
    neighbours=lambda x: (_numbers(x)[:, 1:] * _numbers(x)[:, :-1]).mean(1),
)


def _peers(name: str) -> tuple[Peer, ...]:
    draw = getattr(torch_random, name)
    word = {
        "bits": "torch.randint",
        "uniform": "torch.rand",
        "normal": "torch.randn",
        "bernoulli": "torch.rand < p",
    }[name]
    peers = [
        Peer("reference", partial(_reference, name), exact),
        Peer(f"eager {word}", partial(torch_random.build, draw), SAME_DISTRIBUTION),
        Peer(
            f"torch.compile {word}",
            partial(torch_random.build, draw, compile=True),
            SAME_DISTRIBUTION,
            missing=needs_compiler,
        ),
    ]
    if name == "bernoulli":
        in_place = partial(torch_random.build, torch_random.bernoulli_in_place)
        peers.append(Peer("eager bernoulli_", in_place, SAME_DISTRIBUTION))
    return tuple(peers)


def _case(name: str, size: str, rows: int, n: int, steps: int = 1, *, quick: bool = False) -> Case:
    count = rows * n * steps
    return Case(
        op="random",
        name=f"{name} {size}",
        inputs=partial(_inputs, rows, n, steps),
        fastgen=partial(_fastgen, name),
        peers=_peers(name),
        work=Work(items=count, item="numbers", bytes=count * BYTES[name] if steps == 1 else 0, draws=count),
        quick=quick,
        registered=name,
    )


CASES = (
    *(_case(name, "2^24", 64, 2**18) for name in ("uniform", "normal")),
    *(_case(name, "64 x 2^18", 16, 2**14, 64) for name in ("bits", "uniform", "normal", "bernoulli")),
    *(_case(name, "2^12", 32, 2**7, quick=True) for name in ("bits", "uniform", "normal", "bernoulli")),
)

"""Random numbers: fastgen.random against torch's own generator and against the reference.

`2^24` draws all numbers into one fresh tensor, so that both sides pay the system for 64 MiB of new memory;
`2^24 into out` writes them into the same memory again and again;
`64 x 2^18` draws as many in 64 steps, as samplers do, and the memory is used again. The reference, which is
written to be read, gets fewer.
"""

from collections.abc import Callable
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


def _into(name: str, inputs: Inputs) -> Call:
    draw, ids = getattr(fastgen.random, name), inputs["sample_ids"]
    out = torch.zeros(len(ids), inputs["n"], device=inputs["device"])
    return lambda: draw(inputs["seed"], ids, out=out)


def _reference(name: str, inputs: Inputs) -> Call:
    call = _fastgen(name, inputs)

    def run() -> Tensor:
        with fastgen.use_backend("reference"):
            return call()

    return run


def _numbers(x: Tensor) -> Tensor:
    """Return draws as float; words of 32 bits, signed ones too, as fractions of 2^32."""
    if x.dtype in (torch.uint32, torch.int32):
        return (x.to(torch.int64) % 2**32).float() / 2**32
    return x.float()


SAME_DISTRIBUTION = statistical(
    mean=lambda x: _numbers(x).mean(1),
    square=lambda x: _numbers(x).square().mean(1),
    neighbours=lambda x: (_numbers(x)[:, 1:] * _numbers(x)[:, :-1]).mean(1),
)


WORDS = {
    "bits": "torch.randint",
    "uniform": "torch.rand",
    "normal": "torch.randn",
    "bernoulli": "torch.rand < p",
}


def _torch(name: str) -> tuple[Peer, ...]:
    build = partial(torch_random.build, getattr(torch_random, name))
    compiled = partial(build, compile=True)
    peers = (
        Peer(f"eager {WORDS[name]}", build, SAME_DISTRIBUTION),
        Peer(f"torch.compile {WORDS[name]}", compiled, SAME_DISTRIBUTION, missing=needs_compiler),
    )
    in_place = partial(torch_random.build, torch_random.bernoulli_in_place)
    return (*peers, Peer("eager bernoulli_", in_place, SAME_DISTRIBUTION)) if name == "bernoulli" else peers


def _torch_into(name: str) -> tuple[Peer, ...]:
    draw = {"uniform": torch.rand, "normal": torch.randn}[name]
    return (Peer(f"eager {WORDS[name]}(out=)", partial(torch_random.into, draw), SAME_DISTRIBUTION),)


def _case(
    name: str,
    size: str,
    peers: tuple[Peer, ...],
    rows: int,
    n: int,
    steps: int = 1,
    *,
    build: Callable[[str, Inputs], Call] = _fastgen,
    quick: bool = False,
) -> Case:
    count = rows * n * steps
    return Case(
        op="random",
        name=f"{name} {size}",
        inputs=partial(_inputs, rows, n, steps),
        fastgen=partial(build, name),
        peers=peers,
        work=Work(items=count, item="numbers", bytes=count * BYTES[name] if steps == 1 else 0, draws=count),
        quick=quick,
        registered=name,
    )


REFERENCES = {name: Peer("reference", partial(_reference, name), exact) for name in WORDS}
CASES = (
    *(_case(name, "2^24", _torch(name), 64, 2**18) for name in ("uniform", "normal")),
    *(
        _case(name, "2^24 into out", _torch_into(name), 64, 2**18, build=_into)
        for name in ("uniform", "normal")
    ),
    *(_case(name, "64 x 2^18", _torch(name), 16, 2**14, 64) for name in WORDS),
    *(_case(name, "2^20", (REFERENCES[name],), 64, 2**14) for name in WORDS),
    *(_case(name, "2^16", (REFERENCES[name], *_torch(name)), 256, 2**8, quick=True) for name in WORDS),
)

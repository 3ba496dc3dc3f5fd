"""Same seed, same sample: said once more, and shown on this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.models import RBM, Ising


class Promise(NamedTuple):
    """One claim, and whether it held just now."""

    claim: str
    kept: bool


def make(model: RBM) -> list[Promise]:
    """Put the machine of digits and an Ising model to the test; every comparison is of all bits."""
    families: dict[str, tuple[Callable[..., Tensor], str]] = {
        "RBM": (model.sample, "steps"),
        "Ising model": (Ising(64, 64).sample, "sweeps"),
    }
    return [
        Promise(f"{name}: {claim}", kept)
        for name, family in families.items()
        for claim, kept in _held(*family)
    ]


def _held(sample: Callable[..., Tensor], length: str) -> Iterator[tuple[str, bool]]:
    """Chain 5 of 64, made in every way that there is."""
    wanted = sample(torch.arange(64), seed=7, **{length: 20})
    alone = sample(torch.tensor([5]), seed=7, **{length: 20})
    yield "a chain made alone is the chain made among 64", torch.equal(alone[0], wanted[5])
    half = sample(torch.arange(64), seed=7, **{length: 8})
    rest = sample(torch.arange(64), seed=7, start=half, first_step=8, **{length: 12})
    yield "8 steps, a stop and 12 more are 20 steps", torch.equal(rest, wanted)
    for threads in sorted({1, torch.get_num_threads()}):
        with _threads(threads):
            again = sample(torch.arange(64), seed=7, **{length: 20})
        yield f"made with {threads} thread{'s' * (threads > 1)}", torch.equal(again, wanted)
    other = sample(torch.arange(64), seed=8, **{length: 20})
    yield "another seed gives other samples", not torch.equal(other, wanted)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

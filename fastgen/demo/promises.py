"""Same seed, same sample: said once more, and shown on this machine."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.models import RBM, Flow, Ising, Transformer
from fastgen.testing import with_threads


class Promise(NamedTuple):
    """One claim, and whether it held just now."""

    claim: str
    kept: bool


def make(model: RBM, flow: Flow, poet: Transformer) -> list[Promise]:
    """Put the models of digits, of spins and of text to the test; every comparison is of all bits."""
    families: dict[str, tuple[Callable[..., Tensor], str]] = {
        "RBM": (model.sample, "steps"),
        "Ising model": (Ising(64, 64).sample, "sweeps"),
    }
    held = {name: list(_held(*family)) for name, family in families.items()}
    held["flow"] = list(_held_by_flow(flow))
    held["transformer"] = list(_held_by_transformer(poet))
    return [Promise(f"{name}: {claim}", kept) for name, claims in held.items() for claim, kept in claims]


def _held(sample: Callable[..., Tensor], length: str) -> Iterator[tuple[str, bool]]:
    """Chain 5 of 64, made in every way that there is."""
    wanted = sample(torch.arange(64), seed=7, **{length: 20})
    alone = sample(torch.tensor([5]), seed=7, **{length: 20})
    yield "a chain made alone is the chain made among 64", torch.equal(alone[0], wanted[5])
    half = sample(torch.arange(64), seed=7, **{length: 8})
    rest = sample(torch.arange(64), seed=7, start=half, first_step=8, **{length: 12})
    yield "8 steps, a stop and 12 more are 20 steps", torch.equal(rest, wanted)
    for threads in sorted({1, torch.get_num_threads()}):
        with with_threads(threads):
            again = sample(torch.arange(64), seed=7, **{length: 20})
        yield f"made with {threads} thread{'s' * (threads > 1)}", torch.equal(again, wanted)
    other = sample(torch.arange(64), seed=8, **{length: 20})
    yield "another seed gives other samples", not torch.equal(other, wanted)


def _held_by_flow(flow: Flow) -> Iterator[tuple[str, bool]]:
    """Sample 5 of 64, likewise."""
    wanted = flow.sample(torch.arange(64), seed=7)
    alone = flow.sample(torch.tensor([5]), seed=7)
    yield "a sample made alone is the sample made among 64", torch.equal(alone[0], wanted[5])
    for threads in sorted({1, torch.get_num_threads()}):
        with with_threads(threads):
            again = flow.sample(torch.arange(64), seed=7)
        yield f"made with {threads} thread{'s' * (threads > 1)}", torch.equal(again, wanted)
    other = flow.sample(torch.arange(64), seed=8)
    yield "another seed gives other samples", not torch.equal(other, wanted)


def _held_by_transformer(model: Transformer) -> Iterator[tuple[str, bool]]:
    """Text 5 of 8, likewise."""
    prompts = [f"HAMLET.\n{'Words, ' * i}" for i in range(8)]
    options = {"max_new_tokens": 40, "seed": 7, "log_probs": True}

    def texts(**how: int) -> list[tuple[list[int], list[float] | None]]:
        return [(text.tokens, text.log_probs) for text in model.generate(prompts, **options, **how)]

    wanted = texts()
    alone = model.generate(prompts[5], sample_ids=[5], **options)[0]
    yield "a text written alone is the text among 8", (alone.tokens, alone.log_probs) == wanted[5]
    yield "prompts taken in 7 tokens at a time", texts(pass_tokens=7, batch_size=3) == wanted
    for threads in sorted({1, torch.get_num_threads()}):
        with with_threads(threads):
            again = texts()
        yield f"made with {threads} thread{'s' * (threads > 1)}", again == wanted

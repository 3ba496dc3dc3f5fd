"""Random numbers by torch's own generator, in `steps` tensors of `shape`, as a sampler draws step by step."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.bench.case import Call, Inputs
from fastgen.bench.peers.compiling import compiled

Draw = Callable[[tuple[int, int], float, str], Tensor]


def bits(shape: tuple[int, int], p: float, device: str) -> Tensor:
    """Words of 32 bits; torch has no unsigned ones."""
    return torch.randint(-(2**31), 2**31, shape, device=device, dtype=torch.int32)


def uniform(shape: tuple[int, int], p: float, device: str) -> Tensor:
    """`torch.rand`."""
    return torch.rand(shape, device=device)


def normal(shape: tuple[int, int], p: float, device: str) -> Tensor:
    """`torch.randn`."""
    return torch.randn(shape, device=device)


def bernoulli(shape: tuple[int, int], p: float, device: str) -> Tensor:
    """`torch.rand` compared with p, which measured faster on a CPU than `torch.bernoulli`."""
    return torch.rand(shape, device=device) < p


def bernoulli_in_place(shape: tuple[int, int], p: float, device: str) -> Tensor:
    """`Tensor.bernoulli_`, torch's own function for one p."""
    return torch.empty(shape, device=device, dtype=torch.bool).bernoulli_(p)


def into(draw: Callable[..., Tensor], inputs: Inputs) -> Call:
    """Return the call of `torch.rand` or `torch.randn` that writes into the same memory each time."""
    shape = (len(inputs["sample_ids"]), inputs["n"])
    out = torch.zeros(shape, device=inputs["device"])
    return lambda: draw(shape, out=out)


def build(draw: Draw, inputs: Inputs, *, compile: bool = False) -> Call:
    """Return the call that makes all the tensors and keeps the last."""
    function = compiled(draw) if compile else draw
    shape = (len(inputs["sample_ids"]), inputs["n"])

    def run() -> Tensor:
        for _ in range(inputs["steps"]):
            last = function(shape, inputs["p"], inputs["device"])
        return last

    return run

"""The draws of `fastgen.random` as ops; their public functions, with what they take and give, live there.

Each writes into memory that it is given: a draw takes less time than the system needs to hand out fresh
memory. Triton and CUDA both have them: kernels of either kind draw in their own epilogues and share these
device functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgen import random as contract
from fastgen.ops._registry import Op, register
from fastgen.reference import random as reference


def _fake(*arguments: Any) -> None:
    return None


def _reference(name: str) -> Callable[..., None]:
    def draw(out: Tensor, *arguments: Any) -> None:
        *before, stream = arguments
        out.copy_(getattr(reference, name)(*before, out.shape[1], stream))

    return draw


def _compiled(namespace: str, name: str) -> Callable[..., None]:
    def draw(out: Tensor, *arguments: Any) -> None:
        if name == "bernoulli":
            p, *rest = arguments
            arguments = (p.expand(out.shape), *rest)
        getattr(getattr(torch.ops, namespace), name)(out, *arguments)

    return draw


def _triton(name: str) -> Callable[..., None]:
    def draw(*arguments: Any) -> None:
        from fastgen.kernels import random as kernels  # noqa: PLC0415  triton is optional

        getattr(kernels, name)(*arguments)

    return draw


def _check(out: Tensor, seed: int, sample_ids: Tensor, step: int, stream: int) -> None:
    contract.check_sample_ids(sample_ids)


def _check_bernoulli(out: Tensor, p: Tensor, seed: int, sample_ids: Tensor, step: int, stream: int) -> None:
    contract.check_sample_ids(sample_ids)
    wrong = ~((p >= 0) & (p <= 1))
    if bool(wrong.any()):
        raise ValueError(f"p holds {p[wrong].flatten()[0].item()}, wanted numbers in [0, 1]")


def _register(name: str, probability: str, check: Callable[..., None]) -> None:
    register(
        Op(
            name=name,
            schema=f"(Tensor(a!) out, {probability}SymInt seed, Tensor sample_ids, SymInt step, int stream)"
            " -> ()",
            fake=_fake,
            implementations={
                "reference": _reference(name),
                "native": _compiled("fastgen_native", name),
                "triton": _triton(name),
                "cuda": _compiled("fastgen_cuda", name),
            },
            check_values=check,
        )
    )


for _name in ("bits", "uniform", "normal"):
    _register(_name, "", _check)
_register("bernoulli", "Tensor p, ", _check_bernoulli)

"""The draws of `fastgen.random` as ops; their public functions, with what they take and give, live there.

Triton and CUDA both have them: kernels of either kind draw in their own epilogues and share these device
functions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen import random as contract
from fastgen.ops._registry import Op, register
from fastgen.reference import random as reference

_DTYPES = {"bits": torch.uint32, "uniform": torch.float32, "normal": torch.float32}


def _fake(dtype: torch.dtype) -> Callable[..., Tensor]:
    def fake(seed: int, sample_ids: Tensor, step: int, n: int, stream: int) -> Tensor:
        return sample_ids.new_empty((sample_ids.shape[0], n), dtype=dtype)

    return fake


def _into(namespace: str, name: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The compiled op of `namespace` writes into memory that it is given."""

    def draw(seed: int, sample_ids: Tensor, step: int, n: int, stream: int) -> Tensor:
        out = sample_ids.new_empty((len(sample_ids), n), dtype=dtype)
        getattr(getattr(torch.ops, namespace), name)(out, seed, sample_ids, step, stream)
        return out

    return draw


def _triton(name: str) -> Callable[..., Tensor]:
    def draw(*arguments: object) -> Tensor:
        from fastgen.kernels import random as kernels  # noqa: PLC0415  triton is optional

        return getattr(kernels, name)(*arguments)

    return draw


def _check_draw(seed: int, sample_ids: Tensor, step: int, n: int, stream: int) -> None:
    contract.check_sample_ids(sample_ids)


for _name, _dtype in _DTYPES.items():
    register(
        Op(
            name=_name,
            schema="(SymInt seed, Tensor sample_ids, SymInt step, SymInt n, int stream) -> Tensor",
            fake=_fake(_dtype),
            implementations={
                "reference": getattr(reference, _name),
                "native": _into("fastgen_native", _name, _dtype),
                "triton": _triton(_name),
                "cuda": _into("fastgen_cuda", _name, _dtype),
            },
            check_values=_check_draw,
        )
    )


def _bernoulli_fake(p: Tensor, seed: int, sample_ids: Tensor, step: int, n: int, stream: int) -> Tensor:
    return sample_ids.new_empty((sample_ids.shape[0], n), dtype=torch.bool)


def _bernoulli_into(namespace: str) -> Callable[..., Tensor]:
    def draw(p: Tensor, seed: int, sample_ids: Tensor, step: int, n: int, stream: int) -> Tensor:
        out = sample_ids.new_empty((len(sample_ids), n), dtype=torch.bool)
        getattr(torch.ops, namespace).bernoulli(out, p.expand(out.shape), seed, sample_ids, step, stream)
        return out

    return draw


def _check_bernoulli(p: Tensor, seed: int, sample_ids: Tensor, step: int, n: int, stream: int) -> None:
    contract.check_sample_ids(sample_ids)
    wrong = ~((p >= 0) & (p <= 1))
    if bool(wrong.any()):
        raise ValueError(f"p holds {p[wrong].flatten()[0].item()}, wanted numbers in [0, 1]")


register(
    Op(
        name="bernoulli",
        schema="(Tensor p, SymInt seed, Tensor sample_ids, SymInt step, SymInt n, int stream) -> Tensor",
        fake=_bernoulli_fake,
        implementations={
            "reference": reference.bernoulli,
            "native": _bernoulli_into("fastgen_native"),
            "triton": _triton("bernoulli"),
            "cuda": _bernoulli_into("fastgen_cuda"),
        },
        check_values=_check_bernoulli,
    )
)

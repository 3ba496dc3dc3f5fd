"""How an op is put together: one schema in torch's dispatcher, a fake, and one function for each backend.

The schema `fastgen::<op>` is defined here, in Python, so that it exists whether or not the C++ extension
does. Its implementation checks the values (shapes and dtypes were checked by the public function), asks
`fastgen.backends` which implementation runs, and calls it: one crossing of the dispatcher for a whole loop of
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastgen import backends

LIBRARY = torch.library.Library("fastgen", "DEF")


@dataclass(frozen=True)
class Op:
    """One op: its word, what the dispatcher knows of it, and its implementations by backend."""

    name: str
    schema: str
    fake: Callable[..., Any]
    implementations: dict[str, Callable[..., Any]]
    check_values: Callable[..., None]


OPS: dict[str, Op] = {}


def register(op: Op) -> None:
    """Define `fastgen::<name>` and let the tests and benchmarks find it."""
    OPS[op.name] = op
    for backend, function in op.implementations.items():
        backends.register(op.name, backend, function)

    def run(*arguments: Any) -> Any:
        op.check_values(*arguments)
        _, implementation = backends.choose(op.name, _device_of(arguments))
        return implementation(*arguments)

    def batched(info: Any, in_dims: Any, *arguments: Any) -> Any:
        raise NotImplementedError(
            f"{op.name} is batched already: put the mapped dimension into the batch instead of using vmap"
        )

    LIBRARY.define(f"{op.name}{op.schema}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(op.name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastgen::{op.name}", op.fake, lib=LIBRARY)
    torch.library.register_vmap(f"fastgen::{op.name}", batched, lib=LIBRARY)


def _device_of(arguments: tuple[Any, ...]) -> str:
    return next(a.device.type for a in arguments if isinstance(a, torch.Tensor))

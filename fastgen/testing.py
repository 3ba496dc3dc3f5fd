"""What fastgen's tests are made of: false-alarm rates, exact tests of samplers, fenced memory, ..."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FALSE_ALARM = 1e-6
"""The chance that a correct sampler fails one of the tests below, were its seed not fixed."""

_SENTINEL = 0x5A
_FENCE = 256  # bytes on either side


def chi_square(counts: np.ndarray, probability: np.ndarray) -> float:
    """P-value of observed counts against exact probabilities (Pearson); rare cells are pooled.

    Args:
        counts: (cells,) how often each outcome was seen.
        probability: (cells,) its exact probability; cells that expect fewer than 10 are pooled into one.

    Returns:
        The p-value; 0.0 if something impossible was seen.
    """
    from scipy import stats  # noqa: PLC0415  tests only

    if counts[probability == 0].any():
        return 0.0
    expected = probability * counts.sum()
    rare = expected < 10
    observed, wanted = counts[~rare], expected[~rare]
    if expected[rare].sum() > 0:
        observed, wanted = np.append(observed, counts[rare].sum()), np.append(wanted, expected[rare].sum())
    return float(stats.chisquare(observed, wanted).pvalue)


def recorded(run: Callable[[], Any]) -> list[tuple[torch._ops.OpOverload, tuple[Any, ...]]]:
    """The calls of fastgen's ops that `run()` makes, with their arguments as they reach the dispatcher."""
    with _Recorder() as recorder:
        run()
    return recorder.calls


class _Recorder(TorchDispatchMode):
    """Keeps the calls of fastgen's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastgen":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Run with that many of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def fenced(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """Memory as a kernel may get it: poisoned (NaN where the dtype has one), between two fences.

    Raises:
        AssertionError: on leaving, if something was written outside.
    """
    size = torch.empty((), dtype=dtype).element_size() * int(np.prod(shape))
    memory = torch.full((size + 2 * _FENCE,), _SENTINEL, dtype=torch.uint8)
    inside = memory[_FENCE : _FENCE + size]
    inside.fill_(0xFF)
    yield inside.view(dtype).view(shape)
    outside = torch.cat([memory[:_FENCE], memory[_FENCE + size :]])
    assert bool((outside == _SENTINEL).all()), "a kernel wrote outside the memory it was given"

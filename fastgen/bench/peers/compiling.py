"""`torch.compile` as a user who wants speed would call it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for the shapes at hand, never for symbolic ones; one function is wrapped once."""
    return torch.compile(function, dynamic=False)

"""`torch.compile` as a user who wants speed would call it."""

from collections.abc import Callable
from typing import Any

import torch


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for the shapes at hand; what was compiled before goes, or shapes would become symbolic."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)

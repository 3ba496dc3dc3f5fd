"""Checks of arguments that several ops share."""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

from torch import Tensor


def number(name: str, value: Any) -> float:
    """A finite number as a float; TypeError or ValueError if it is none."""
    # What a protocol asks of a type takes long, and most numbers are of a type known to have it.
    if type(value) not in (float, int) and (
        isinstance(value, (bool, Tensor)) or not isinstance(value, SupportsFloat)
    ):
        raise TypeError(f"{name} is {type(value).__name__}, wanted a number")
    found = float(value)
    if not -math.inf < found < math.inf:  # written so that torch.compile can follow
        raise ValueError(f"{name} is {found}, wanted a finite number")
    return found

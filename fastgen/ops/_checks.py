"""Checks of arguments that several ops share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, SupportsFloat

import torch
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


def check_elements(x: Tensor, params: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Refuse elements x and their parameters unless they are dense, of one dtype and on one device."""
    for name, value in (("x", x), ("params", params)):
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            kind = f"a {value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} is {kind}, wanted a dense tensor")
    if x.dtype not in dtypes:
        *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"x is {x.dtype}, wanted {', '.join(most)} or {last}")
    if params.dtype != x.dtype:
        raise TypeError(f"params is {params.dtype}, wanted {x.dtype} as x")
    if params.device != x.device:
        raise ValueError(f"params is on {params.device}, wanted {x.device} as x")

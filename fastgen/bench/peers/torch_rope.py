"""Rotary position embedding as transformers' Llama writes it: halves swapped, two products and a sum."""

import torch
from torch import Tensor

from fastgen.bench.case import Call, Inputs
from fastgen.bench.peers.compiling import compiled


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, D) with cos and sin (T, D), each half the same."""
    low, high = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]


def build(inputs: Inputs, *, compile: bool = False) -> Call:
    """Return the call that turns x; the angles are doubled beforehand."""
    cos, sin = (torch.cat((inputs[name],) * 2, -1) for name in ("cos", "sin"))
    run = compiled(turned) if compile else turned
    return lambda: run(inputs["x"], cos, sin)

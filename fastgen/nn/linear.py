"""`torch.nn.Linear` whose rows have the same bits in every batch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops import linear


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` computed by `fastgen.ops.linear`; parameters and state dictionaries are the same."""

    def forward(self, x: Tensor, *, activation: str = "none", residual: Tensor | None = None) -> Tensor:
        """activation(x W^T + b) + residual; see `fastgen.ops.linear`."""
        return linear(x, self.weight, self.bias, activation=activation, residual=residual)

"""A linear layer and what follows it, as PyTorch has them: MKL's or oneDNN's product, then one pass each."""

import torch
from torch.nn import functional as F

from fastgen.bench.case import Call, Inputs
from fastgen.bench.peers.compiling import compiled
from fastgen.reference.linear import ACTIVATIONS


def build(inputs: Inputs, *, compile: bool = False) -> Call:
    """Return the call that computes activation(x W^T + b) + residual."""
    activation, residual = ACTIVATIONS[inputs["activation"]], inputs["residual"]

    def layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = activation(F.linear(x, weight, bias))
        return y if residual is None else y + residual

    run = compiled(layer) if compile else layer
    weight = inputs["weight"].to(inputs["x"].dtype)  # PyTorch multiplies equal dtypes only
    return lambda: run(inputs["x"], weight, inputs["bias"])

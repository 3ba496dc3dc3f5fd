"""Three convolutions with ReLU between them, as PyTorch has them: oneDNN's convolutions."""

import torch
from torch.nn import functional as F

from fastgen.bench.case import Call, Inputs
from fastgen.bench.peers.compiling import compiled


def build(inputs: Inputs, *, compile: bool = False) -> Call:
    """Return the call that computes the network; channels that come last are moved, as views."""
    weights, biases, last = inputs["weights"], inputs["biases"], inputs["dim"] == -1

    def network(x: torch.Tensor) -> torch.Tensor:
        h = x.movedim(-1, 1) if last else x
        h = F.relu(F.conv2d(h, weights[0], biases[0], padding=1))
        h = F.relu(F.conv2d(h, weights[1], biases[1]))
        y = F.conv2d(h, weights[2], biases[2], padding=1)
        return y.movedim(1, -1) if last else y

    run = compiled(network) if compile else network
    return lambda: run(inputs["x"])

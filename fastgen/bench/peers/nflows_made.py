"""The inverse of masked autoregressive layers as nflows and normflows compute it: D passes of the network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgen.bench.case import Call, Inputs
from fastgen.ops import MaskedNetwork, Spline

Layer = Callable[..., Any]


def nflows_layer(network: MaskedNetwork, transform: object) -> Any:
    """Return nflows' layer of the same sizes."""
    from nflows.transforms import autoregressive as flows  # noqa: PLC0415 (an optional extra)

    sizes = {"features": network.units[0], "hidden_features": network.units[1]}
    assert not isinstance(transform, Spline)
    return flows.MaskedAffineAutoregressiveTransform(**sizes, num_blocks=2)


def normflows_layer(network: MaskedNetwork, transform: object) -> Any:
    """Return normflows' layer of the same sizes, with linear tails."""
    from normflows.flows import neural_spline  # noqa: PLC0415 (an optional extra)

    assert isinstance(transform, Spline)
    module = neural_spline.AutoregressiveRationalQuadraticSpline(
        network.units[0], 2, network.units[1], num_bins=transform.bins, tail_bound=int(transform.bound)
    )
    return module.mprqat


def build(make: Layer, inputs: Inputs) -> Call:
    """Return the call of the inverse, with the weights of `inputs`."""
    network, z = inputs["network"], inputs["z"]
    layer = make(network, inputs["transform"]).to(z.device, z.dtype)
    made = layer.autoregressive_net
    linears = [made.initial_layer]
    for block in made.blocks:
        linears += list(block.linear_layers)
    with torch.no_grad():
        for linear, weight, bias in zip(
            [*linears, made.final_layer], network.weights, network.biases, strict=True
        ):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)

    def run() -> tuple[Tensor, Tensor]:
        return layer.inverse(z)

    return run

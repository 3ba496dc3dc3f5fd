"""The inverse of a masked autoregressive transform as zuko computes it: one pass of the network a feature."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastgen.bench.case import Call, Inputs
from fastgen.ops import Spline


def build(inputs: Inputs) -> Call:
    """Return the call that samples x from z, and gives what its log-determinant is found from."""
    from zuko.flows import MaskedAutoregressiveTransform  # noqa: PLC0415 (an optional extra)
    from zuko.transforms import MonotonicRQSTransform  # noqa: PLC0415

    network, transform, z = inputs["network"], inputs["transform"], inputs["z"]
    curved, units = isinstance(transform, Spline), network.units
    options: dict[str, Any] = {}
    if curved:
        univariate = partial(MonotonicRQSTransform, bound=transform.bound, slope=transform.min_derivative)
        bins = transform.bins
        options = {"univariate": univariate, "shapes": [(bins,), (bins,), (bins - 1,)]}
    layer = MaskedAutoregressiveTransform(units[0], hidden_features=units[1:-1], **options)
    layer = layer.to(z.device, z.dtype)
    linears = [module for module in layer.hyper if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        for linear, weight, bias in zip(linears, network.weights, network.biases, strict=True):
            swapped = linear is linears[-1] and not curved  # shift and scale change places
            linear.weight.copy_(weight.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) if swapped else weight)
            linear.bias.copy_(bias.unflatten(0, (-1, 2)).flip(1).flatten() if swapped else bias)

    def run() -> tuple[Any, Tensor, Tensor]:
        flow = layer()
        return flow, flow.inv(z), z

    return run


def unpack(output: tuple[Any, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return x and the log-determinant of the inverse, which sampling leaves out."""
    flow, x, z = output
    return x, -flow.log_abs_det_jacobian(x, z)

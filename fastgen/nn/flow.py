"""Layers of normalizing flows: bijections with the logarithm of their volume change."""

import abc
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from fastgen.nn import reversible


class FlowLayer(torch.nn.Module, abc.ABC):
    """A bijection of each row of a batch, from data to latent.

    Each direction returns (out, log_det), log_det (N,) = log|det d(out)/d(in)| of that very direction. In
    evaluation mode row i of the results has the same bits whatever else is in the batch.
    """

    @abc.abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent: x (N, ...) and context (N, C) or None to z and log_det (N,)."""

    @abc.abstractmethod
    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to data: the inverse of `forward`, with the log_det of its own direction."""


class FlowSequence(FlowLayer):
    """Layers one after the other; the inverse takes them in reverse order.

    Args:
        layers: in the order from data to latent.
        constant_memory: where gradients are wanted of `forward`, keep its result alone, and get the layers'
            inputs back by their inverses in the backward pass. That takes about twice the time, memory that
            does not grow with the number of layers, and gives gradients as exact as the inverses are; there
            are no gradients of gradients.
    """

    def __init__(self, layers: Iterable[FlowLayer], *, constant_memory: bool = False) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self.constant_memory = constant_memory

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From the first layer to the last."""
        if self.constant_memory and torch.is_grad_enabled():
            return reversible.run(cast("list[FlowLayer]", list(self.layers)), x, context)
        log_det = zero_log_det(x)
        for layer in self.layers:
            x, term = layer(x, context)
            log_det = log_det + term
        return x, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From the last layer to the first."""
        log_det = zero_log_det(z)
        for layer in reversed(cast("list[FlowLayer]", list(self.layers))):
            z, term = layer.inverse(z, context)
            log_det = log_det + term
        return z, log_det


class Inverse(FlowLayer):
    """A layer with its directions exchanged."""

    def __init__(self, layer: FlowLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The inverse of the layer."""
        return self.layer.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The layer itself."""
        return self.layer(z, context)


def zero_log_det(x: Tensor) -> Tensor:
    """The log_det (N,) of a layer that keeps volumes, in the dtype of x, or float32 for integers."""
    return torch.zeros(len(x), dtype=x.dtype if x.is_floating_point() else torch.float32, device=x.device)


def check_width(name: str, x: Tensor, width: int) -> None:
    """ValueError: x is not (N, ..., width)."""
    if x.dim() < 2 or x.shape[-1] != width:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted (N, ..., {width})")


def check_rows(name: str, x: object, width: int, rows: int | None = None) -> None:
    """TypeError or ValueError: x is no floating tensor (N, width), with N = rows if that is given."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} is {kind}, wanted a floating tensor")
    if x.dim() != 2 or x.shape[1] != width or rows not in (None, len(x)):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, wanted ({'N' if rows is None else rows}, {width})"
        )


def row_sum(x: Tensor) -> Tensor:
    """Sums (N,) over all but the first dimension, each added up in an order that does not depend on N."""
    rows = x.flatten(1)
    if len(rows) != 1:
        return rows.sum(1)
    # Torch shares a single long sum among threads, but never one of several sums.
    return rows.expand(2, -1).sum(1)[:1]

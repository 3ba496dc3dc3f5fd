"""Activation normalization: an affine map of each channel that starts from its data."""

import torch
from torch import Tensor

from fastgen.nn.flow import FlowLayer, check_width


class ActNorm(FlowLayer):
    """z = (x + shift) * exp(log_scale), by channel, the last dimension (Glow, arXiv:1807.03039).

    The first batch in training mode with numbers in it, all of them finite, sets both so that each channel of
    z has mean 0 and variance 1; the buffer `initialised`, which is saved with the rest, keeps it from
    happening again. Until then it is the identity.

    Args:
        channels: size of the last dimension.

    Raises:
        ValueError: x has other channels, or is the first batch and holds numbers that are not finite.
    """

    initialised: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(channels))
        self.log_scale = torch.nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Take shift and log_scale from a batch (N, ..., channels); of a constant channel the shift alone."""
        check_width("x", x, len(self.shift))
        count = int((~x.isfinite()).sum())
        if count:
            raise ValueError(
                f"x has {count} NaN or infinite numbers of {x.numel()}, wanted a first batch of finite ones"
            )
        rows = x.detach().flatten(0, -2).double()
        deviation = rows.std(0, correction=0)
        self.shift.copy_(-rows.mean(0))
        self.log_scale.copy_(torch.where(deviation > 1e-6, -deviation.log(), 0.0))
        self.initialised.fill_(True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, ..., channels) to z."""
        check_width("x", x, len(self.shift))
        if self.training and not self.initialised and x.numel():
            self.initialise(x)
        return (x + self.shift) * self.log_scale.exp(), self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (N, ..., channels) to x."""
        check_width("z", z, len(self.shift))
        return z * (-self.log_scale).exp() - self.shift, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        places = x[0].numel() // x.shape[-1] if len(x) else 0
        return (places * self.log_scale.sum()).expand(len(x))

"""From grey values to real numbers and back: uniform noise between the levels, and the logit."""

import math

import torch
from torch import Tensor

from fastgen import random
from fastgen.nn.flow import FlowLayer, row_sum, zero_log_det
from fastgen.random import Stream


class Dequantization(FlowLayer):
    """Grey value number k of `levels` becomes (k + u) / levels, u uniform in [0, 1) (arXiv:1511.01844).

    The expected log density of what comes out, plus this layer's log_det, is a lower bound of the log
    probability of the grey values.

    Args:
        levels: how many grey values there are, at equal distances from 0 to 255; 2 to 256.
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        if not isinstance(levels, int) or isinstance(levels, bool) or not 2 <= levels <= 256:
            raise ValueError(f"levels is {levels!r}, wanted an int from 2 to 256")
        self.levels = levels

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Grey values x, integers from 0 to 255, with noise from torch; what is floating stays as it is."""
        if x.is_floating_point():
            return x, zero_log_det(x)
        return self.place(x, torch.rand(x.shape, device=x.device)), self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Real numbers as they are: `quantize` brings them to grey values."""
        return z, zero_log_det(z)

    def place(self, x: Tensor, noise: Tensor) -> Tensor:
        """(k + noise) / levels of grey values x, noise in [0, 1). ValueError: x is outside 0 to 255."""
        if not torch.compiler.is_compiling() and bool(((x < 0) | (x > 255)).any()):
            raise ValueError(f"x ranges from {x.min()} to {x.max()}, wanted grey values from 0 to 255")
        k = (x.long() * (self.levels - 1) + 127) // 255
        return (k + noise) / self.levels

    def noise(self, seed: int, sample_ids: Tensor, n: int, draw: int = 0) -> Tensor:
        """Noise (N, n) for `place` that belongs to the images of these ids; each draw has its own."""
        return random.uniform(seed, sample_ids, step=draw, n=n, stream=Stream.FLOW_DEQUANTIZATION)

    def quantize(self, y: Tensor) -> Tensor:
        """The grey values uint8 of real numbers y; those outside [0, 1] count as the ends."""
        k = (y.float() * self.levels).floor().clamp(0, self.levels - 1)
        return (k * 255 / (self.levels - 1)).round().to(torch.uint8)

    def _log_det(self, x: Tensor) -> Tensor:
        return zero_log_det(x) - x[:1].numel() * math.log(self.levels)


class Logit(FlowLayer):
    """z = logit(alpha + (1 - 2 alpha) x): what lies in [0, 1] gets room on both sides (arXiv:1605.08803).

    Args:
        alpha: in (0, 1/2); the further from 0, the closer to linear.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha is {alpha!r}, wanted a number between 0 and 1/2")
        self.alpha = alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, ...) from 0 to 1. ValueError: it is outside by more than alpha / (1 - 2 alpha)."""
        share = self.alpha + (1 - 2 * self.alpha) * x
        if not torch.compiler.is_compiling() and bool(((share < 0) | (share > 1)).any()):
            raise ValueError(
                f"x ranges from {x.min()} to {x.max()}, wanted real numbers from 0 to 1 (grey values from"
                " 0 to 255 have an integer dtype)"
            )
        z = torch.log(share) - torch.log1p(-share)
        return z, -self._log_slope(z)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (N, ...) to x, from -alpha / (1 - 2 alpha) to as much above 1."""
        # Not torch.sigmoid, whose last bit depends on an element's place in memory.
        share = 1 / (1 + torch.exp(-z))
        return (share - self.alpha) / (1 - 2 * self.alpha), self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        """log dx/dz, summed: log(share (1 - share) / (1 - 2 alpha))."""
        size = z.abs()
        terms = -size - 2 * torch.log1p(torch.exp(-size))
        return row_sum(terms - math.log(1 - 2 * self.alpha))

"""Flow layers that only move numbers around: their log-determinants are zero."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgen import random
from fastgen.nn.flow import FlowLayer, check_width, zero_log_det
from fastgen.random import Stream


class Permutation(FlowLayer):
    """z[..., i] = x[..., order[i]] of the last dimension.

    Args:
        order: a permutation of 0 to D - 1, or "reverse" or "random", which need `features`.
        features: D.
        seed: of the random one.
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: str | Sequence[int], features: int | None = None, *, seed: int = 0) -> None:
        super().__init__()
        if order in ("reverse", "random") and features is None:
            raise ValueError(f"features is None, wanted the number of features to order in {order!r}")
        if order == "reverse":
            places = torch.arange(features or 0).flip(0)
        elif order == "random":
            words = random.bits(seed, torch.tensor([0]), n=features or 0, stream=Stream.PERMUTATION)
            places = words[0].long().argsort(stable=True)
        elif isinstance(order, str) or sorted(order) != list(range(len(order))):
            raise ValueError(f"order is {order!r}, wanted 'reverse', 'random' or a permutation of 0 to D - 1")
        else:
            places = torch.tensor(list(order))
        self.register_buffer("order", places)
        self.register_buffer("back", places.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, ..., D) in another order."""
        check_width("x", x, len(self.order))
        return x.index_select(-1, self.order), zero_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Back in the first order."""
        check_width("z", z, len(self.back))
        return z.index_select(-1, self.back), zero_log_det(z)


class Squeeze(FlowLayer):
    """Blocks of 2 x 2 pixels become one pixel: (N, H, W, C) to (N, H / 2, W / 2, 4 C)."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ValueError: x is not (N, H, W, C) with even H and W."""
        if x.dim() != 4 or x.shape[1] % 2 or x.shape[2] % 2:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted (N, H, W, C) with even H and W")
        n, height, width, channels = x.shape
        blocks = x.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
        return blocks.reshape(n, height // 2, width // 2, 4 * channels), zero_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ValueError: z is not (N, H, W, C) with C a multiple of 4."""
        if z.dim() != 4 or z.shape[3] % 4:
            raise ValueError(f"z has shape {tuple(z.shape)}, wanted (N, H, W, C) with C a multiple of 4")
        n, height, width, channels = z.shape
        blocks = z.reshape(n, height, width, 2, 2, channels // 4).transpose(2, 3)
        return blocks.reshape(n, 2 * height, 2 * width, channels // 4), zero_log_det(z)


class ChannelsLast(FlowLayer):
    """Rows that hold images (C, H, W), to images (N, H, W, C).

    Args:
        shape: (C, H, W).
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, C H W) to (N, H, W, C)."""
        return x.unflatten(1, self.shape).permute(0, 2, 3, 1).contiguous(), zero_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) to (N, C H W)."""
        return z.permute(0, 3, 1, 2).reshape(len(z), math.prod(self.shape)), zero_log_det(z)


class Flatten(FlowLayer):
    """(N, *shape) to rows (N, D)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, *shape) to (N, D)."""
        return x.flatten(1), zero_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, D) to (N, *shape)."""
        return z.unflatten(1, self.shape), zero_log_det(z)

"""The network in the couplings of normflows' Glow, three convolutions with an activation between them."""

from typing import Any

import torch
from normflows import nets
from torch import Tensor

from fastgen.ops import conv_net


class ConvNet2d(nets.ConvNet2d):
    """All layers in one op, on CPUs and where no gradient is wanted: recording them is PyTorch's."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, outputs, H, W)."""
        convolutions, slope = self.net[::2], self.net[1].negative_slope
        weights, biases = [c.weight for c in convolutions], [c.bias for c in convolutions]
        if _in_one_op(self, x, [x, *weights, *biases]):
            return conv_net(x, weights, biases, slope=slope)
        if x.dim() == 4 and x.device.type == "cpu":  # where few channels convolve faster, pixel by pixel
            x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x)


def obstacle(network: Any) -> str | None:
    """Why `conv_net` cannot stand for a ConvNet2d, or None."""
    kinds = [torch.nn.Conv2d, torch.nn.LeakyReLU] * 2 + [torch.nn.Conv2d]
    if [type(layer) for layer in network.net] != kinds:
        return "not three convolutions with an activation between them"
    sizes = [convolution.kernel_size for convolution in network.net[::2]]
    return None if set(sizes) <= {(1, 1), (3, 3)} else f"its kernels are {sizes}, not of 1 or 3"


def _in_one_op(network: ConvNet2d, x: Tensor, tensors: list[Tensor]) -> bool:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and x.dtype in (torch.float32, torch.float64)
        and all(t.dtype == x.dtype for t in tensors)
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.net)
    )

"""Networks that condition flows: in evaluation row i of their outputs has the same bits in every batch.

Their products are then `fastgen.ops.linear`, and in training PyTorch's own, which are quicker to record.
Their last layer starts at zero, so that a coupling starts at the identity.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from fastgen.nn.linear import Linear
from fastgen.ops import conv_net, linear
from fastgen.reference.linear import ACTIVATIONS


class MLP(torch.nn.Module):
    """Linear layers with an activation between them; the context is appended to the inputs.

    Args:
        inputs, outputs: features of a row.
        hidden: units of each hidden layer.
        activation: a name that `fastgen.ops.linear` knows.
        context: features of a row's context; 0 for none.
    """

    def __init__(
        self, inputs: int, outputs: int, *, hidden: Sequence[int], activation: str = "relu", context: int = 0
    ) -> None:
        super().__init__()
        sizes = [inputs + context, *hidden, outputs]
        self.activation = activation
        self.layers = torch.nn.ModuleList(Linear(i, o) for i, o in pairwise(sizes))
        zero_(self.layers[-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, outputs) of x (N, inputs) and context (N, context)."""
        h = with_context(x, context)
        for layer in self.layers[:-1]:
            h = product(layer, h, activation=self.activation)
        return product(self.layers[-1], h)


class ResidualMLP(torch.nn.Module):
    """h = h + W_2 f(W_1 f(h)) in each block (He et al. 2016, arXiv:1603.05027), between two linear layers.

    Args:
        inputs, outputs, activation, context: as `MLP`.
        hidden: units of every hidden layer.
        blocks: 0 or more, of two layers each.
        dropout: share of the units that a block leaves out in training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int,
        blocks: int = 2,
        activation: str = "relu",
        context: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation, self.dropout = activation, dropout
        self.first = Linear(inputs + context, hidden)
        self.blocks = torch.nn.ModuleList(Linear(hidden, hidden) for _ in range(2 * blocks))
        self.last = zero_(Linear(hidden, outputs))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, outputs) of x (N, inputs) and context (N, context)."""
        h = product(self.first, with_context(x, context))
        for inner, outer in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            t = product(inner, activated(h, self.activation), activation=self.activation)
            h = product(outer, functional.dropout(t, self.dropout, self.training), residual=h)
        return product(self.last, h)


class ConvNet(torch.nn.Module):
    """Convolutions 3 x 3, 1 x 1 and 3 x 3 with ReLU between them, as in Glow; channels come last.

    In evaluation they are one op, `fastgen.ops.conv_net`. In training the first is a product with the nine
    neighbours of each pixel, and the last, with few channels to give, a product with nine times as many
    outputs, which shifted additions bring to their places.

    Args:
        inputs, outputs: channels.
        hidden: channels between; 0 for one convolution 3 x 3 alone.
        context: features of an image's context, seen by each pixel; 0 for none.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int, context: int = 0) -> None:
        super().__init__()
        self.outputs = outputs
        self.hidden = torch.nn.ModuleList()
        if hidden:
            self.hidden.extend([Linear(9 * inputs + context, hidden), Linear(hidden, hidden)])
        self.last = zero_(Linear(hidden or inputs + context, 9 * outputs, bias=False))
        self.bias = torch.nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, H, W, outputs) of x (N, H, W, inputs) and context (N, context)."""
        if self.hidden and not self.training:
            return self._in_one_op(x, context)
        h = neighbours(x) if self.hidden else x
        if context is not None:
            h = torch.cat([h, context[:, None, None].expand(*h.shape[:3], -1)], -1)
        for layer in self.hidden:
            h = product(layer, h, activation="relu")
        return gather_neighbours(product(self.last, h), self.bias)

    def _in_one_op(self, x: Tensor, context: Tensor | None) -> Tensor:
        first, second, last = cast("list[Linear]", [*self.hidden, self.last])
        inputs, outputs, hidden = x.shape[-1], self.outputs, first.out_features
        near: Tensor = first.weight
        bias: Tensor = first.bias
        if context is not None:  # what it adds to each pixel of its image is a bias of that image
            bias = linear(context, near[:, 9 * inputs :], bias)
            near = near[:, : 9 * inputs]
        weights = (
            near.view(hidden, 3, 3, inputs).permute(0, 3, 1, 2),
            second.weight.view(hidden, hidden, 1, 1),
            last.weight.view(3, 3, outputs, hidden).permute(2, 3, 0, 1),
        )
        return conv_net(x, weights, (bias, second.bias, self.bias), dim=-1)


def neighbours(x: Tensor) -> Tensor:
    """(N, H, W, 9 C): each pixel of x (N, H, W, C) and its eight neighbours, row after row, 0 outside."""
    windows = functional.pad(x, (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)


def gather_neighbours(parts: Tensor, bias: Tensor) -> Tensor:
    """(N, H, W, C): the bias and what each pixel gets from its neighbours, of parts (N, H, W, 9 C)."""
    rows = parts.unflatten(-1, (3, -1))
    column = rows[:, :, :, 1].clone()
    column[:, 1:] += rows[:, :-1, :, 0]
    column[:, :-1] += rows[:, 1:, :, 2]
    columns = column.unflatten(-1, (3, -1))
    total = columns[:, :, :, 1] + bias
    total[:, :, 1:] += columns[:, :, :-1, 0]
    total[:, :, :-1] += columns[:, :, 1:, 2]
    return total


def with_context(x: Tensor, context: Tensor | None) -> Tensor:
    """Features and context side by side."""
    return x if context is None else torch.cat([x, context], -1)


def product(
    layer: torch.nn.Module, x: Tensor, *, activation: str = "none", residual: Tensor | None = None
) -> Tensor:
    """activation(x W^T + b) + residual of a `Linear`, as evaluation or training wants it."""
    if not layer.training:
        return layer(x, activation=activation, residual=residual)
    assert isinstance(layer, Linear)
    y = ACTIVATIONS[activation](functional.linear(x, layer.weight, layer.bias))
    return y if residual is None else y + residual


def activated(h: Tensor, activation: str) -> Tensor:
    """An activation by itself; all but ReLU through the op, since torch's differ at the end of a tensor."""
    if activation == "relu":
        return h.relu()
    one, column = h.new_ones(1, 1), h.reshape(-1, 1)
    return linear(column, one, activation=activation).view_as(h)


def zero_(layer: torch.nn.Module) -> torch.nn.Module:
    """Set a linear layer's parameters to zero."""
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    return layer

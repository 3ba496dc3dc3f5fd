"""MADE, and the autoregressive flow layer that it conditions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen.nn.flow import FlowLayer, check_rows
from fastgen.ops import Affine, MaskedNetwork, Spline, affine_coupling, linear, made_inverse, rq_spline
from fastgen.random import as_int
from fastgen.reference.linear import ACTIVATIONS


class MADE(torch.nn.Module):
    """A network whose outputs for a feature depend only on earlier features (Germain et al. 2015).

    Hidden layers have `hidden_features` units each: one, then one more a block, or with `residual` two more a
    block, t = t + W_2 f(W_1 t + b_1) + b_2. The masks come from degrees: a feature has its place in the
    order, 1 to D; a unit of degree m sees features of degree up to m; outputs of feature d see lower degrees.

    In evaluation it runs on `fastgen.ops.linear`, so that row i's bits do not depend on the batch or the
    threads; in training on PyTorch's own products.

    Args:
        features: D.
        outputs: P, the outputs of each feature.
        hidden_features: units of a hidden layer.
        blocks: of hidden layers after the first one, 0 or more.
        residual: whether they are residual blocks.
        activation: f, a name that `fastgen.ops.linear` knows.
        context_features: length of the context of a row; 0 for none.
        order: None for 0 .. D-1, "reversed", "random", or the place of each feature, a permutation.
        random_degrees: draw the hidden units' degrees with torch's generator instead of dealing them out.
    """

    def __init__(
        self,
        features: int,
        outputs: int = 2,
        *,
        hidden_features: int = 256,
        blocks: int = 2,
        residual: bool = True,
        activation: str = "relu",
        context_features: int = 0,
        order: str | Sequence[int] | None = None,
        random_degrees: bool = False,
    ) -> None:
        super().__init__()
        features, outputs = as_int("features", features, 1), as_int("outputs", outputs, 1)
        hidden_features, blocks = as_int("hidden_features", hidden_features, 1), as_int("blocks", blocks, 0)
        context_features = as_int("context_features", context_features, 0)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}, wanted one of {', '.join(ACTIVATIONS)}")
        self.features, self.outputs, self.context_features = features, outputs, context_features
        self.activation, self.residual = activation, residual
        hidden = 1 + blocks * (2 if residual else 1)
        degrees = [1 + _places(order, features)]
        for k in range(hidden):
            if k and residual:
                degrees.append(degrees[1])
            else:
                degrees.append(self._hidden_degrees(degrees[k], hidden_features, random_degrees))
        for k, of_units in enumerate(degrees):
            self.register_buffer(f"degrees_{k}", of_units)
        sizes = [features, *[hidden_features] * hidden, features * outputs]
        self.layers = torch.nn.ModuleList(torch.nn.Linear(i, o) for i, o in pairwise(sizes))
        # The context enters the first layer and the first one of each residual block.
        entries = [k for k in range(hidden) if context_features and (k == 0 or (residual and k % 2))]
        self.context_layers = torch.nn.ModuleDict(
            {str(k): torch.nn.Linear(context_features, hidden_features, bias=False) for k in entries}
        )

    def _hidden_degrees(self, below: Tensor, units: int, draw: bool) -> Tensor:
        """Degrees up to D - 1, from 0 where the context gives units something that no feature gives."""
        least = 0 if self.context_features or self.features == 1 else 1
        if draw:
            return torch.randint(
                max(least, min(int(below.min()), self.features - 1)), self.features, (units,)
            )
        return least + torch.arange(units) % (self.features - least)

    def degrees(self) -> list[Tensor]:
        """The degrees of the features and of each hidden layer's units."""
        return [self.get_buffer(f"degrees_{k}") for k in range(len(self.layers))]

    def network(self) -> MaskedNetwork:
        """The network as `fastgen.ops.made_inverse` takes it, without the context."""
        count = len(self.layers)
        second = [self.residual and 0 < k < count - 1 and k % 2 == 0 for k in range(count)]
        return MaskedNetwork(
            weights=[layer.get_parameter("weight") for layer in self.layers],
            biases=[layer.get_parameter("bias") for layer in self.layers],
            degrees=self.degrees(),
            activation=self.activation,
            activated=second if self.residual else [k > 0 for k in range(count)],
            residual=second,
        )

    def addends(self, context: Tensor | None) -> list[Tensor | None]:
        """What the context adds to each layer."""
        if context is None:
            return [None] * len(self.layers)
        terms = {
            k: linear(context, layer.get_parameter("weight")) for k, layer in self.context_layers.items()
        }
        return [terms.get(str(k)) for k in range(len(self.layers))]

    def check(self, name: str, x: Tensor, context: Tensor | None) -> None:
        """TypeError or ValueError unless x, called `name`, and the context are what the network takes."""
        check_rows(name, x, self.features)
        if (context is None) != (self.context_features == 0):
            wanted = f"({len(x)}, {self.context_features})" if self.context_features else "None"
            raise ValueError(f"context is {'None' if context is None else 'given'}, wanted {wanted}")
        if context is not None:
            check_rows("context", context, self.context_features, len(x))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The outputs (N, D, P) of x (N, D) and context (N, context_features)."""
        self.check("x", x, context)
        network = self.network()
        degrees = [*network.degrees, network.degrees[0].repeat_interleave(self.outputs)]
        outputs: list[Tensor] = []
        h = x
        for k, bias in enumerate(network.biases):
            last = k + 1 == len(network.biases)
            above, below = degrees[k + 1][:, None], degrees[k]
            weight = torch.where(above > below if last else above >= below, network.weights[k], 0)
            if str(k) in self.context_layers and context is not None:
                weight = torch.cat([weight, self.context_layers[str(k)].get_parameter("weight")], 1)
                h = torch.cat([h, context], 1)
            activation = self.activation if not last and network.activated[k + 1] else "none"
            h = self._linear(h, weight, bias, activation, outputs[-2] if network.residual[k] else None)
            outputs.append(h)
        return h.unflatten(1, (self.features, self.outputs))

    def _linear(
        self, x: Tensor, weight: Tensor, bias: Tensor, activation: str, residual: Tensor | None
    ) -> Tensor:
        if not self.training:
            return linear(x, weight, bias, activation=activation, residual=residual)
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x, or the context, is {x.dtype}, wanted {weight.dtype} as the weights")
        y = ACTIVATIONS[activation](F.linear(x, weight, bias))
        return y if residual is None else y + residual


def _places(order: str | Sequence[int] | None, features: int) -> Tensor:
    """The place of each feature, 0 to D - 1."""
    if order is None:
        return torch.arange(features)
    if order == "reversed":
        return torch.arange(features).flip(0)
    if order == "random":
        return torch.randperm(features)
    places = list(order) if isinstance(order, Sequence) and not isinstance(order, str) else []
    if sorted(places) != list(range(features)):
        raise ValueError(
            f"order is {order!r}, wanted None, 'reversed', 'random' or a permutation of 0 to {features - 1}"
        )
    return torch.tensor(places)


class MaskedAutoregressive(FlowLayer):
    """z_d = T(x_d; network(x)_d): one pass towards the latent, `fastgen.ops.made_inverse` back.

    Args:
        made: the network, with `transform.parameters` outputs for each feature.
        transform: `fastgen.ops.Affine(...)` or `fastgen.ops.Spline(...)`.
    """

    def __init__(self, made: MADE, transform: Affine | Spline) -> None:
        super().__init__()
        transform.flat()  # whose checks come too late when the first sample is drawn
        if made.outputs != transform.parameters:
            raise ValueError(
                f"made has {made.outputs} outputs of a feature, wanted {transform.parameters} for {transform}"
            )
        self.made, self.transform = made, transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data x (N, D) to latent z (N, D)."""
        return apply(self.transform, x, self.made(x, context))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent z (N, D) to data x (N, D)."""
        self.made.check("z", z, context)
        return made_inverse(z, self.made.network(), self.transform, addends=self.made.addends(context))


def apply(transform: Affine | Spline, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Elements x (N, D) with their parameters (N, D, P) to z (N, D), and log_det (N,)."""
    params = params.to(x.dtype)  # which autocast may have changed
    if isinstance(transform, Spline):
        return rq_spline(x, params, **transform._asdict())
    return affine_coupling(x, params.flatten(1), layout="interleaved", first="scale", **transform._asdict())

"""Coupling layers: some features pass unchanged and condition a map of the others, element by element."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastgen.nn.flow import FlowLayer, check_rows, check_width, zero_log_det
from fastgen.nn.linear import Linear
from fastgen.nn.networks import product, zero_
from fastgen.ops import Affine, Spline
from fastgen.ops.affine_coupling import affine_coupling
from fastgen.ops.rq_spline import rq_spline

# network(inputs, outputs) is a module that takes (x (N, ..., inputs), context) to (N, ..., outputs).
Network = Callable[[int, int], torch.nn.Module]


class Coupling(FlowLayer):
    """What couplings share: `transform` maps some features, in the last dimension, given the others.

    Args:
        features: D, size of the last dimension of x (N, ..., D), 2 or more.
        network: makes the conditioner: network(inputs, outputs), of modules that take x and the context.
        parameters: P, what an element's map needs; the network's outputs are P for the first feature, P for
            the second, ...
        mask: D bools, True where a feature passes; by default the first half, rounded up, does.
    """

    indices: Tensor
    back: Tensor

    def __init__(
        self, features: int, network: Network, parameters: int, mask: Sequence[bool] | None = None
    ) -> None:
        super().__init__()
        passes = (
            [i < (features + 1) // 2 for i in range(features)] if mask is None else [bool(m) for m in mask]
        )
        self.passed = sum(passes)
        if len(passes) != features or not 0 < self.passed < features:
            raise ValueError(f"mask is {mask}, wanted {features} bools, at least one True and one False")
        self.sorted = all(passes[: self.passed])
        order = torch.tensor(
            [i for i in range(features) if passes[i]] + [i for i in range(features) if not passes[i]]
        )
        self.register_buffer("indices", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.network = network(self.passed, (features - self.passed) * parameters)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, ..., D) to z."""
        return self._run(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (N, ..., D) to x."""
        return self._run(z, context, inverse=True)

    @abc.abstractmethod
    def transform(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """y (N, M) and log_det (N,) of elements x (N, M) with parameters (N, M P)."""

    def _run(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        check_width("z" if inverse else "x", x, len(self.indices))
        if not self.sorted:
            x = x.index_select(-1, self.indices)
        fixed, moved = x[..., : self.passed], x[..., self.passed :]
        params = self.network(fixed, context)
        params = params.flatten(1).to(x.dtype)  # which autocast may have changed
        y, log_det = self.transform(moved.flatten(1), params, inverse=inverse)
        out = torch.cat([fixed, y.view(moved.shape)], -1)
        return (out if self.sorted else out.index_select(-1, self.back)), log_det


class AffineCoupling(Coupling):
    """z = scale x + shift with scale and shift from the network (RealNVP, arXiv:1605.08803).

    Args:
        features, network, mask: as `Coupling`; the network's outputs are shift and raw scale of each feature.
        scale_map: from raw scales to scales, a name that `fastgen.ops.affine_coupling` knows; by default
            exp(clamp tanh(raw / clamp)).
        clamp: bound of the logarithm of the scales, for "tanh", "atan" and "softclip".
    """

    def __init__(
        self,
        features: int,
        network: Network,
        *,
        mask: Sequence[bool] | None = None,
        scale_map: str = "tanh",
        clamp: float = 2.0,
    ) -> None:
        Affine(scale_map, clamp).flat()  # whose checks come too late when data come
        super().__init__(features, network, 2, mask)
        self.scale_map, self.clamp = scale_map, clamp

    def transform(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """See `fastgen.ops.affine_coupling`."""
        return affine_coupling(
            x, params, scale_map=self.scale_map, layout="interleaved", clamp=self.clamp, inverse=inverse
        )


class SplineCoupling(Coupling):
    """z = spline(x), its knots from the network (Neural spline flows, arXiv:1906.04032).

    Starts at the identity where the network starts at zero.

    Args:
        features, network, mask: as `Coupling`; the network gives 3 bins - 1 numbers for each feature.
        bins: of each spline.
        bound: the splines cover [-bound, bound], and are the identity beyond.
    """

    def __init__(
        self,
        features: int,
        network: Network,
        *,
        mask: Sequence[bool] | None = None,
        bins: int = 8,
        bound: float = 3.0,
    ) -> None:
        Spline(bins=bins, bound=bound).flat()
        super().__init__(features, network, 3 * bins - 1, mask)
        self.bins, self.bound = bins, bound

    def transform(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """See `fastgen.ops.rq_spline`."""
        params = params.unflatten(1, (x.shape[1], 3 * self.bins - 1)) + self.identity(params)
        return rq_spline(x, params, bins=self.bins, bound=self.bound, inverse=inverse)

    def identity(self, like: Tensor) -> Tensor:
        """What is added to the numbers of a feature: raw derivatives with softplus(raw) + 1e-3 = 1."""
        raw = like.new_zeros(3 * self.bins - 1)
        raw[2 * self.bins :] = math.log(math.expm1(1 - 1e-3))
        return raw


class ConditionalNormal(FlowLayer):
    """z = scale x + shift, both linear in the context: x is normal with a mean and a scale that it decides.

    The prior of Glow's last latent by class (arXiv:1807.03039). It starts as the standard normal.

    Args:
        features: D of rows x (N, D).
        context: features of a row's context, 1 or more.
        clamp: bound of the logarithm of the scales, exp(clamp tanh(raw / clamp)).
    """

    def __init__(self, features: int, context: int, *, clamp: float = 2.0) -> None:
        super().__init__()
        Affine("tanh", clamp).flat()
        self.features, self.context, self.clamp = features, context, clamp
        self.linear = zero_(Linear(context, 2 * features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, D) and context (N, C) to z."""
        return self._run("x", x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (N, D) and context (N, C) to x."""
        return self._run("z", z, context, inverse=True)

    def _run(self, name: str, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        check_rows(name, x, self.features)
        check_rows("context", context, self.context, len(x))
        assert context is not None  # because of check_rows
        params = product(self.linear, context).to(x.dtype)  # which autocast may have changed
        return affine_coupling(x, params, scale_map="tanh", clamp=self.clamp, inverse=inverse)


class Split(FlowLayer):
    """Half of the channels leave as latent, the other half goes through `rest`: the levels of Glow.

    x (N, ..., D) to rows: first what `rest` makes of the first half, then the second half, which
    `gaussianise` has mapped given the first: a coupling that learns mean and scale of what leaves.

    Args:
        rest: what the first half goes through, to rows.
        shape: of a row of x, channels last.
        gaussianise: a layer of D features that leaves the first half, rounded up, unchanged; None for none.
    """

    def __init__(self, rest: FlowLayer, shape: Sequence[int], gaussianise: FlowLayer | None = None) -> None:
        super().__init__()
        self.rest, self.gaussianise, self.shape = rest, gaussianise, tuple(shape)
        self.kept = (self.shape[-1] + 1) // 2

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, *shape) to z (N, D)."""
        if x.dim() == 0 or x.shape[1:] != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted (N, {wanted})")
        x, log_det = (x, zero_log_det(x)) if self.gaussianise is None else self.gaussianise(x, context)
        z, term = self.rest(x[..., : self.kept].contiguous(), context)
        return torch.cat([z, x[..., self.kept :].flatten(1)], 1), log_det + term

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (N, D) to x (N, *shape)."""
        if z.dim() != 2 or z.shape[1] != math.prod(self.shape):
            raise ValueError(f"z has shape {tuple(z.shape)}, wanted (N, {math.prod(self.shape)})")
        inner = math.prod(self.shape[:-1]) * self.kept
        kept, log_det = self.rest.inverse(z[:, :inner].contiguous(), context)
        left = z[:, inner:].unflatten(1, (*self.shape[:-1], -1))
        x = torch.cat([kept, left], -1)
        if self.gaussianise is None:
            return x, log_det
        x, term = self.gaussianise.inverse(x, context)
        return x, log_det + term

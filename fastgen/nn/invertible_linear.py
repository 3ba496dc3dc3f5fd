"""The invertible 1x1 convolution of Glow, its inverse kept, with an activation normalization folded in."""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.nn.actnorm import ActNorm
from fastgen.nn.flow import FlowLayer
from fastgen.ops.invertible_linear import inverse_map, invertible_linear
from fastgen.random import as_int
from fastgen.stamps import Stamp, modules_of, tensors_of


class Map(NamedTuple):
    """W x + b: weight (C, C), bias (C,) or None, log_abs_det () = log|det W|."""

    weight: Tensor
    bias: Tensor | None
    log_abs_det: Tensor


class ChannelMap(FlowLayer):
    """z = W x + b for the channels x of every pixel, W and b made of the layer's parameters by `make_map`.

    In evaluation mode, where no gradient of a parameter is wanted, the map and its inverse are made once and
    kept until a parameter changes; `fastgen.stamps.Stamp` tells which changes are seen.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim not in (1, -1):
            raise ValueError(f"dim is {dim!r}, wanted 1 or -1")
        self.dim = dim
        self._kept: dict[bool, tuple[Stamp, Map]] = {}

    @abc.abstractmethod
    def make_map(self) -> Map:
        """The forward map, in float64."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, C, ...), or with dim=-1 (N, ..., C), to z."""
        return self._run(x, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z to x."""
        return self._run(z, inverse=True)

    def _run(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        weight, bias, log_abs_det = self._map_of(inverse)
        return invertible_linear(x, weight, bias, log_abs_det=log_abs_det, dim=self.dim)

    def _map_of(self, inverse: bool) -> Map:
        sources = tensors_of(*modules_of(self))
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in sources)
        if self.training or wanted or torch.compiler.is_compiling():
            self._kept.clear()
            return self._make(inverse)
        if inverse not in self._kept or not self._kept[inverse][0].holds(sources):
            with torch.inference_mode(False), torch.no_grad():
                self._kept[inverse] = Stamp(sources), self._make(inverse)
        return self._kept[inverse][1]

    def _make(self, inverse: bool) -> Map:
        weight, bias, log_abs_det = self.make_map()
        if inverse:
            weight, bias = inverse_map(weight, bias)
            log_abs_det = -log_abs_det
        dtype = torch.promote_types(next(self.parameters()).dtype, torch.float32)
        return Map(weight.to(dtype), None if bias is None else bias.to(dtype), log_abs_det.to(dtype))


class InvertibleLinear(ChannelMap):
    """z = W x for the channels x of every pixel (Kingma and Dhariwal 2018, arXiv:1807.03039).

    W = P L (U + diag(sign exp(log_scale))) with a fixed permutation P, L with ones on its diagonal and U
    without one, both learned, so that log|det W| is the sum of log_scale; without `lu`, W itself is learned.
    It starts as a random rotation, drawn from torch's default generator.

    Args:
        channels: C, 1 or more.
        lu: whether to learn the factors, or W.
        dim: the dimension of x that holds the channels, 1 or -1.

    Raises:
        ValueError: naming the argument, what came and what is wanted; of a W that became singular, too.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, *, lu: bool = True, dim: int = 1) -> None:
        super().__init__(dim)
        channels = as_int("channels", channels, 1)
        self.lu = lu
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        dtype = torch.get_default_dtype()
        if not lu:
            self.matrix = torch.nn.Parameter(rotation.to(dtype))
            return
        permutation, lower, upper = torch.linalg.lu(rotation)
        self.register_buffer("permutation", permutation.to(dtype))
        self.register_buffer("sign", upper.diagonal().sign().to(dtype))
        self.lower = torch.nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = torch.nn.Parameter(upper.triu(1).to(dtype))
        self.log_scale = torch.nn.Parameter(upper.diagonal().abs().log().to(dtype))

    def make_map(self) -> Map:
        """W and its log-determinant, in float64."""
        if not self.lu:
            weight = self.matrix.double()
            return Map(weight, None, torch.linalg.slogdet(weight).logabsdet)
        log_scale = self.log_scale.double()
        lower = self.lower.double().tril(-1) + torch.eye(len(log_scale), device=log_scale.device)
        upper = self.upper.double().triu(1) + torch.diag(self.sign.double() * log_scale.exp())
        return Map(self.permutation.double() @ lower @ upper, None, log_scale.sum())

    def fold(self, norm: ActNorm) -> NormalizedLinear:
        """This layer after `norm`, in one pass; the parameters stay where they are, shared.

        ValueError: no batch has gone through `norm` yet; it would not start from one any more.
        """
        if not norm.initialised:
            raise ValueError("norm is not initialised, wanted one that a first batch has gone through")
        return NormalizedLinear(norm, self)


class NormalizedLinear(ChannelMap):
    """z = linear(norm(x)) in one pass: the normalization becomes part of the matrix and of its bias.

    Args:
        norm: over the same channels as linear.
        linear: what comes after it.
    """

    def __init__(self, norm: ActNorm, linear: InvertibleLinear) -> None:
        super().__init__(linear.dim)
        self.norm, self.linear = norm, linear

    def make_map(self) -> Map:
        """Of both layers together, in float64."""
        weight, _, log_abs_det = self.linear.make_map()
        log_scale = self.norm.log_scale.double()
        weight = weight * log_scale.exp()
        return Map(weight, weight @ self.norm.shift.double(), log_abs_det + log_scale.sum())

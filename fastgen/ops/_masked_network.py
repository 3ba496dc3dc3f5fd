"""What `made_inverse` works on: a masked network, and the transform whose parameters the network gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.ops.affine_coupling import check_scale_map
from fastgen.ops.rq_spline import check_spline, parameters
from fastgen.reference.linear import ACTIVATIONS

Flat = tuple[str, str, int, str, list[float]]


class Affine(NamedTuple):
    """z = scale x + shift, from two parameters of each feature: the raw scale, then the shift.

    Attributes:
        scale_map: how a raw number becomes a scale; see `fastgen.ops.affine_coupling` for it and the others.
        clamp: finite, > 0, of the maps that are bounded.
        min_scale: finite, >= 0, of "sigmoid" and "softplus", else 0.
    """

    scale_map: str = "tanh"
    clamp: float = 3.0
    min_scale: float = 0.0

    @property
    def parameters(self) -> int:
        """P, the number of parameters of a feature."""
        return 2

    def flat(self) -> Flat:
        """The arguments of the op; TypeError or ValueError for what no affine transform has."""
        return "affine", self.scale_map, 0, "", list(check_scale_map(*self))


class Spline(NamedTuple):
    """z = a rational-quadratic spline of x; see `fastgen.ops.rq_spline` for what the attributes mean.

    Its P parameters of each feature are `bins` raw widths, as many raw heights, and the raw derivatives.
    """

    bins: int = 8
    tails: str | None = "linear"
    bound: float = 5.0
    min_width: float = 1e-3
    min_height: float = 1e-3
    min_derivative: float = 1e-3
    scale: float = 1.0
    parametrization: str = "softmax"

    @property
    def parameters(self) -> int:
        """P, the number of parameters of a feature."""
        return parameters(self.bins, self.tails)

    def flat(self) -> Flat:
        """The arguments of the op; TypeError or ValueError for what no spline has."""
        bins, tails, bound, *rest = self
        numbers = check_spline(bins, tails, bound, None, *rest)
        return "spline", self.parametrization, bins, tails or "none", list(numbers)


class MaskedNetwork(NamedTuple):
    """A network of masked linear layers (Germain et al. 2015, arXiv:1502.03509), layer k from 0 to L - 1:

        h_k = gate_k * (W_k f(h_{k-1}) + b_k + addend_k) + h_{k-2}

    with h_{-1} = x; f is the activation where `activated[k]`, else the identity; h_{k-2} is added where
    `residual[k]`. The gate and the addend come with the rows (`made_inverse`). A unit counts its inputs of
    lower or equal degree, an output those of lower degree than its feature's; what a weight says of others
    is ignored, so that weights may come with or without their masks.

    Attributes:
        weights: W_k (units, inputs), float32, float64 or bfloat16. The last one has P outputs of each
            feature, those of feature 0 first.
        biases: b_k (units,), floating.
        degrees: of the inputs (D,) and of each hidden layer's units, integers. Features of the same degree do
            not depend on each other.
        activation: a name that `fastgen.ops.linear` knows.
        activated: for each layer whether the activation is applied to its inputs; not of the first layer,
            which sees x itself.
        residual: for each layer whether h_{k-2} is added, which must have as many units, none of which of
            higher degree.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    degrees: Sequence[Tensor]
    activation: str
    activated: Sequence[bool]
    residual: Sequence[bool]

    @property
    def units(self) -> list[int]:
        """The number of inputs, of the units of each hidden layer, and of outputs."""
        return [self.weights[0].shape[1], *(w.shape[0] for w in self.weights)]

    def check(self, parameters: int) -> None:
        """TypeError or ValueError unless all parts fit each other and P is `parameters`."""
        count = len(self.weights)
        if self.activation not in ACTIVATIONS:
            wanted = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation is {self.activation!r}, wanted one of {wanted}")
        if count == 0:
            raise ValueError("weights is empty, wanted one for each layer")
        for name in ("biases", "degrees", "activated", "residual"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, wanted {count} as weights")
        dtype, device = getattr(self.weights[0], "dtype", None), getattr(self.weights[0], "device", None)
        for k, (weight, bias, degrees) in enumerate(
            zip(self.weights, self.biases, self.degrees, strict=True)
        ):
            _check_tensor(f"weights[{k}]", weight, 2)
            _check_tensor(f"biases[{k}]", bias, 1, (weight.shape[0],))
            _check_tensor(f"degrees[{k}]", degrees, 1, (weight.shape[1],), integer=True)
            if k and weight.shape[1] != self.weights[k - 1].shape[0]:
                before = self.weights[k - 1].shape[0]
                raise ValueError(
                    f"weights[{k}] takes {weight.shape[1]} inputs, wanted {before} as the layer before"
                )
            if weight.dtype != dtype:
                raise TypeError(f"weights[{k}] is {weight.dtype}, wanted {dtype} as weights[0]")
            for name, part in (("weights", weight), ("biases", bias), ("degrees", degrees)):
                if part.device != device:
                    raise ValueError(f"{name}[{k}] is on {part.device}, wanted {device} as weights[0]")
        features, outputs = self.units[0], self.units[-1]
        if features == 0 or outputs != features * parameters:
            raise ValueError(
                f"weights[{count - 1}] has {outputs} outputs, wanted {parameters} for each of {features}"
            )
        if self.activated[0]:
            raise ValueError("activated[0] is True, wanted False: the first layer sees x itself")
        self._check_residual()

    def _check_residual(self) -> None:
        units = self.units
        for k, residual in enumerate(self.residual):
            if residual and not (2 <= k < len(self.weights) - 1 and units[k + 1] == units[k - 1]):
                raise ValueError(
                    f"residual[{k}] is True, wanted that for hidden layers alone, with as many units as the"
                    " hidden layer two before"
                )


def _check_tensor(
    name: str, value: Tensor, dim: int, shape: tuple[int, ...] | None = None, *, integer: bool = False
) -> None:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        kind = f"a {value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} is {kind}, wanted a dense tensor")
    if integer and (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool):
        raise TypeError(f"{name} is {value.dtype}, wanted integers")
    if not integer and value.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise TypeError(f"{name} is {value.dtype}, wanted float32, float64 or bfloat16")
    if value.dim() != dim or (shape is not None and value.shape != shape):
        wanted = shape or "(units, inputs)"
        raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted {wanted}")

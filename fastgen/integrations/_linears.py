"""Invertible matrices of foreign libraries, whose inverses are kept until the parameters change."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgen.ops import invertible_linear


class Map(NamedTuple):
    """y = weight x + bias, and log|det weight|."""

    weight: Tensor
    bias: Tensor | None
    log_abs_det: Tensor


def takes(x: Tensor, parameter: Tensor) -> bool:
    """Whether `invertible_linear` takes vectors or images x, and weights, in their dtypes as they are."""
    if torch.is_autocast_enabled(x.device.type):
        return False
    return x.dim() in (2, 4) and x.dtype == parameter.dtype and x.dtype in (torch.float32, torch.float64)


def apply(x: Tensor, how: Map) -> tuple[Tensor, Tensor]:
    """The map of the channels of x (N, C, ...), and log|det dy/dx| (N,)."""
    return invertible_linear(x, how.weight, how.bias, log_abs_det=how.log_abs_det)


def inverse_of(how: Map) -> Map:
    """The inverse, computed in float64."""
    wide = torch.linalg.inv(how.weight.double())
    bias = None if how.bias is None else -(wide @ how.bias.double()).to(how.bias.dtype)
    return Map(wide.to(how.weight.dtype), bias, -how.log_abs_det)


def kept(
    owner: nn.Module, name: str, parameters: Sequence[Tensor], make: Callable[[], Map], *, facts: Any = None
) -> Map:
    """What `make()` returns; without gradients, what it returned when parameters and facts were the same."""
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
        return make()
    held: dict[str, Any] = owner.__dict__.setdefault("_fastgen_maps", {})
    before = held.get(name)
    # Writing through `.data` changes no version, so that the values themselves are compared.
    if before is None or before[1] != facts or not all(map(_same, before[0], parameters)):
        with torch.inference_mode(False), torch.no_grad():  # what is kept may meet gradients later
            before = held[name] = [p.detach().clone() for p in parameters], facts, make()
    return before[2]


def lu_map(lu: Any, permutation: Any = None, *, inverse: bool = False) -> Map:
    """L U x + b of an LULinear of nflows or normflows, of permuted channels x if so, or the inverse of it."""
    parameters = [lu.lower_entries, lu.upper_entries, lu.unconstrained_upper_diag, lu.bias]
    parameters += [] if permutation is None else [permutation._permutation]

    def make() -> Map:
        weight = lu.weight() if permutation is None else lu.weight()[:, permutation._inverse_permutation]
        how = Map(weight, lu.bias, lu.logabsdet())
        return inverse_of(how) if inverse else how

    return kept(lu, "inverse" if inverse else "forward", parameters, make, facts=lu.eps)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)

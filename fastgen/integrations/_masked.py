"""The masked networks of foreign libraries in the form that `made_inverse` takes.

Its degrees are found from the masks alone, whatever rule they were made by: a feature's degree counts the
steps up to it, a hidden unit's is the highest among the features that reach it, 0 if none does. So random
masks, permuted orders, coupling masks and graphs given as adjacency matrices are one case.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fastgen.ops import Affine, MaskedNetwork, Spline, made_inverse
from fastgen.stamps import Stamp

_FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    F.relu: "relu",
    F.leaky_relu: "leaky_relu",
    F.elu: "elu",
    F.gelu: "gelu",
    F.silu: "silu",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    F.softplus: "softplus",
}
_MODULES: dict[type, Callable[[Any], str | None]] = {
    nn.ReLU: lambda f: "relu",
    nn.LeakyReLU: lambda f: "leaky_relu" if f.negative_slope == 0.01 else None,
    nn.ELU: lambda f: "elu" if f.alpha == 1 else None,
    nn.GELU: lambda f: {"none": "gelu", "tanh": "gelu_tanh"}.get(f.approximate),
    nn.SiLU: lambda f: "silu",
    nn.Tanh: lambda f: "tanh",
    nn.Sigmoid: lambda f: "sigmoid",
    nn.Softplus: lambda f: "softplus" if (f.beta, f.threshold) == (1, 20) else None,
}


_DTYPES = {torch.float32, torch.float64, torch.bfloat16}


class Layer(NamedTuple):
    """A masked linear layer as `fastgen.ops.MaskedNetwork` describes it, with what the context adds."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)
    mask: Tensor  # (out, in), of 0 and 1
    activated: bool = False
    residual: bool = False
    addend: Tensor | None = None  # (N, out)
    gate: Tensor | None = None  # (N, out)


def activation_name(activation: Any) -> str | None:
    """What `fastgen.ops.linear` calls a function or a module, or None if it has no such activation."""
    if type(activation) in _MODULES:
        return _MODULES[type(activation)](activation)
    return _FUNCTIONS.get(activation) if callable(activation) else None


def takes(z: Tensor, network: nn.Module) -> bool:
    """Whether `made_inverse` takes z and the network's weights in their dtypes."""
    weight = next(network.parameters())
    wide = z.dtype == torch.float64
    return z.dim() == 2 and (weight.dtype == torch.float64) == wide and {z.dtype, weight.dtype} <= _DTYPES


def obstacle(network: nn.Module, *known: type) -> str | None:
    """Why a network may compute more than its weights say, or None; `known`: the classes of its library."""
    for part in network.modules():
        kind = parametrize.type_before_parametrizations(part)
        if kind not in known and (part is network or not kind.__module__.startswith("torch.")):
            return f"made_inverse does not know {kind.__name__}, which is in its network"
        if part._forward_hooks or part._forward_pre_hooks:
            return "made_inverse does not call the hooks of its network"
    return None


def made_obstacle(network: Any, *activations: Any) -> str | None:
    """Why `made_inverse` cannot stand for the MADE that nflows and normflows share, or None."""
    names = {activation_name(activation) for activation in activations}
    if len(names) > 1 or None in names:
        return "made_inverse does not know its activation"
    if any(getattr(block, "use_batch_norm", getattr(block, "batch_norm", None)) for block in network.blocks):
        return "made_inverse does not know batch normalisation"
    return None


def in_one_pass(module: Any, z: Tensor, obstacle: str | None) -> bool:
    """Whether `made_inverse` inverts a module with such a MADE; active dropout is left to the library."""
    network = module.autoregressive_net
    if obstacle is not None or not takes(z, network):
        return False
    return not (network.training and any(block.dropout.p > 0 for block in network.blocks))


def degrees_of(masks: Sequence[Tensor], residual: Sequence[bool]) -> list[Tensor]:
    """Degrees of the features and of each hidden layer's units.

    Args:
        masks: of each layer (out, in); the last one has as many outputs for each feature.
        residual: whether the units of a layer also have what those two layers before have.

    Raises:
        ValueError: a feature depends on itself, by whatever way.
    """
    features = masks[0].shape[1]
    reached = [torch.eye(features, dtype=torch.bool, device=masks[0].device)]
    for mask, skips in zip(masks, residual, strict=True):
        seen = mask.float() @ reached[-1].float() > 0
        reached.append(seen | reached[-2] if skips else seen)
    needed = reached[-1].view(features, -1, features).any(1)
    degrees = torch.ones(features, dtype=torch.int64, device=needed.device)
    for _ in range(features):
        later = 1 + torch.where(needed, degrees, 0).amax(1)
        if torch.equal(later, degrees):
            return [torch.where(seen, degrees, 0).amax(1) for seen in reached[:-1]]
        degrees = later
    raise ValueError("the masks let a feature depend on itself, wanted those of an autoregressive network")


def invert(
    owner: nn.Module, z: Tensor, layers: Sequence[Layer], activation: str, transform: Affine | Spline
) -> tuple[Tensor, Tensor]:
    """x (N, D) and log|det dx/dz| (N,) for z (N, D); `owner` keeps the degrees until the masks change."""
    degrees, exact = _degrees(owner, layers)
    network = MaskedNetwork(
        # The op leaves out what the degrees exclude; the masks may exclude more.
        weights=[
            layer.weight if whole else layer.weight * layer.mask
            for layer, whole in zip(layers, exact, strict=True)
        ],
        biases=[layer.bias for layer in layers],
        degrees=degrees,
        activation=activation,
        activated=[layer.activated for layer in layers],
        residual=[layer.residual for layer in layers],
    )
    addends = [_of_rows(layer.addend, len(z)) for layer in layers]
    gates = [_of_rows(layer.gate, len(z)) for layer in layers]
    return made_inverse(z, network, transform, addends=addends, gates=gates)


def _of_rows(added: Tensor | None, rows: int) -> Tensor | None:
    """What a context adds, for each row; one context may go for all."""
    one = added is not None and (added.dim() == 1 or len(added) == 1)
    return added.expand(rows, -1) if one and added is not None else added


def invert_spline(
    owner: nn.Module, z: Tensor, layers: list[Layer], activation: str, how: Spline
) -> tuple[Tensor, Tensor]:
    """The same for splines, which without tails have the box from 0 to 1 of nflows and normflows."""
    if how.tails is not None:
        return invert(owner, z, layers, activation, how)
    # The op's box is from -1 to 1: u = 2 x - 1 on both sides of the spline, and in the first layer.
    first = layers[0]
    weight = first.weight * first.mask / 2
    scaled = [first._replace(weight=weight, bias=first.bias + weight.sum(1)), *layers[1:]]
    u, log_det = invert(owner, 2 * z - 1, scaled, activation, how)
    return (u + 1) / 2, log_det


def _degrees(owner: nn.Module, layers: Sequence[Layer]) -> tuple[list[Tensor], list[bool]]:
    """The degrees, and for each layer whether they exclude just what its mask excludes."""
    masks = [layer.mask for layer in layers]
    kept = owner.__dict__.get("_fastgen_degrees")
    if kept is None or not kept[0].holds(masks):
        degrees = degrees_of(masks, [layer.residual for layer in layers])
        outputs = degrees[0].repeat_interleave(len(layers[-1].mask) // len(degrees[0]))
        exact = []
        for layer, below, above in zip(layers, degrees, [*degrees[1:], outputs], strict=True):
            allowed = above[:, None] > below if layer is layers[-1] else above[:, None] >= below
            exact.append(torch.equal(allowed, layer.mask.bool()))
        kept = owner.__dict__["_fastgen_degrees"] = (Stamp(masks), degrees, exact)
    return kept[1], kept[2]

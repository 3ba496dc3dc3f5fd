"""The flows of normflows, computed with fastgen's ops.

Each class here has the name of its base class, and overrides how that computes, never what; the direction is
normflows', `forward` from latent to data. Base distributions are kept, so that `sample` draws the same noise
after the same `torch.manual_seed`, and gives the same samples to rounding. Networks are kept as well, since
they are PyTorch's own products already, but for the convolutions in the couplings of Glow.
"""

import math
from typing import Any

import torch
from normflows import distributions, flows, nets
from normflows.flows import mixing
from normflows.flows.affine.autoregressive import MaskedAffineAutoregressive as PlainMAF
from normflows.flows.affine.coupling import AffineCoupling as PlainAffineCoupling
from normflows.flows.neural_spline.autoregressive import (
    MaskedPiecewiseRationalQuadraticAutoregressive as PlainSplineMAF,
)
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCDF as PlainCDF
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling as PlainSplineCoupling
from normflows.nets import made
from torch import Tensor

from fastgen.integrations import Report, _affines, _convolutions, _linears, _masked, _splines
from fastgen.integrations._masked import Layer
from fastgen.integrations._modules import Swap, swap_modules
from fastgen.ops import Affine

# The scale maps of normflows, as maps from latent to data; shifts and raw scales come in turns.
_SCALE_MAPS = {"exp": "exp", "sigmoid": "reciprocal_sigmoid", "sigmoid_inv": "sigmoid"}


class PiecewiseRationalQuadraticCoupling(PlainSplineCoupling):
    """The spline in one op; the network's outputs stay as they are instead of being divided in place."""

    def _coupling_transform(
        self, inputs: Tensor, transform_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        if _is_mixed(self) and inputs.dim() != 2:
            return super()._coupling_transform(inputs, transform_params, inverse)
        params = _splines.of_pixels(transform_params, inputs.shape[1])
        scale = _splines.softmax_scale(self.transform_net)
        return _splines.spline_of_module(self, inputs, params, scale=scale, inverse=inverse)


class PiecewiseRationalQuadraticCDF(PlainCDF):
    """The spline in one op."""

    def _spline(self, inputs: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        if _is_mixed(self) and inputs.dim() != 2:
            return super()._spline(inputs, inverse)
        params = _splines.shared_params(self, len(inputs))
        return _splines.spline_of_module(self, inputs, params, inverse=inverse)


class MaskedPiecewiseRationalQuadraticAutoregressive(PlainSplineMAF):
    """The spline in one op, and the inverse at the cost of about one pass of the network."""

    def _elementwise(
        self, inputs: Tensor, autoregressive_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        params = _splines.of_pixels(autoregressive_params, inputs.shape[1])
        scale = _splines.softmax_scale(self.autoregressive_net)
        return _splines.spline_of_module(self, inputs, params, scale=scale, inverse=inverse)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x from y = forward(x), with log|det| of that direction (N,)."""
        if not _masked.in_one_pass(self, inputs, _inverse_obstacle(self)):
            return super().inverse(inputs, context)
        layers, activation = _layers(self.autoregressive_net, context)
        how = _splines.spline_of(self, _splines.softmax_scale(self.autoregressive_net))
        return _masked.invert_spline(self, inputs, layers, activation, how)


class MaskedAffineAutoregressive(PlainMAF):
    """Scale and shift in one op, and the inverse at the cost of about one pass of the network."""

    def _elementwise_forward(self, inputs: Tensor, autoregressive_params: Tensor) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"scale_map": "sigmoid", "min_scale": 1e-3, "layout": "interleaved"}
        return _affines.couple(inputs, autoregressive_params, **options, first="scale")

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x from y = forward(x), with log|det| of that direction (N,)."""
        if not _masked.in_one_pass(self, inputs, _inverse_obstacle(self)):
            return super().inverse(inputs, context)
        layers, activation = _layers(self.autoregressive_net, context)
        return _masked.invert(self, inputs, layers, activation, Affine("sigmoid", min_scale=1e-3))


class AffineCoupling(PlainAffineCoupling):
    """Scale, shift and log-determinant in one op."""

    def forward(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """[z1, z2] to [z1, scale z2 + shift], with log|det| (N,)."""
        z2, log_det = _couple(self, z[1], self.param_map(z[0]), inverse=False)
        return [z[0], z2], log_det

    def inverse(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """[z1, scale z2 + shift] to [z1, z2], with log|det| of that direction (N,)."""
        z2, log_det = _couple(self, z[1], self.param_map(z[0]), inverse=True)
        return [z[0], z2], log_det


class AffineCouplingBlock(flows.AffineCouplingBlock):
    """Split, coupling and merge of channels in one op."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data, with log|det| (N,)."""
        return super().forward(z) if _other_split(self) else _couple_block(self, z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent, with log|det| (N,)."""
        return super().inverse(z) if _other_split(self) else _couple_block(self, z, inverse=True)


class MaskedAffineFlow(flows.MaskedAffineFlow):
    """Scale, shift and log-determinant in one op.

    Where a network gives infinity normflows has NaN; here it is infinity or NaN.
    """

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data, with log|det| (N,)."""
        return self._couple(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent, with log|det| (N,)."""
        return self._couple(z, inverse=True)

    def _couple(self, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        passed = self.b * z
        params = torch.cat([self.t(passed), self.s(passed)], 1)
        mask = self.b[0] != 0
        return _affines.couple(z, params, scale_map="exp", mask=mask, inverse=inverse)


class Invertible1x1Conv(flows.Invertible1x1Conv):
    """One op; what of it is an inverse is kept until the parameters change."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data, with log|det|, one number for all rows."""
        return _convolve(self, z, inverse=True) if _linears.takes(z, _weight(self)) else super().forward(z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent, with log|det|, one number for all rows."""
        return _convolve(self, z, inverse=False) if _linears.takes(z, _weight(self)) else super().inverse(z)


class InvertibleAffine(flows.InvertibleAffine):
    """One op; what of it is an inverse is kept until the parameters change."""

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to data, with log|det|, one number for all rows."""
        if z.dim() != 2 or not _linears.takes(z, _weight(self)):
            return super().forward(z, context)
        return _convolve(self, z, inverse=True)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent, with log|det|, one number for all rows."""
        if z.dim() != 2 or not _linears.takes(z, _weight(self)):
            return super().inverse(z, context)
        return _convolve(self, z, inverse=False)


class LULinearPermute(flows.LULinearPermute):
    """Permutation and product in one op, or its inverse, which is kept until the parameters change."""

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to data, with log|det| (N,)."""
        if z.dim() != 2 or not _linears.takes(z, self.linear.bias):
            return super().forward(z, context)
        return _linears.apply(z, _linears.lu_map(self.linear, self.permutation, inverse=True))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent, with log|det| (N,)."""
        if z.dim() != 2 or not _linears.takes(z, self.linear.bias):
            return super().inverse(z, context)
        return _linears.apply(z, _linears.lu_map(self.linear, self.permutation))


class GlowBlock(flows.GlowBlock):
    """The coupling in one op, 1x1 convolution and activation normalisation in another."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data, with log|det| (N,)."""
        if not _is_folded(self, z):
            return super().forward(z)
        coupling, convolution, norm = self.flows
        z, first = coupling(z)
        z, second = _linears.apply(z, _folded(self, convolution, norm, inverse=False))
        return z, first + second

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent, with log|det| (N,)."""
        if not _is_folded(self, z):
            return super().inverse(z)
        coupling, convolution, norm = self.flows
        z, first = _linears.apply(z, _folded(self, convolution, norm, inverse=True))
        z, second = coupling.inverse(z)
        return z, first + second


def accelerate(model: Any) -> tuple[Any, Report]:
    """The accelerated copy of a flow model or a flow, and the report."""
    # A cache may hold tensors with a history, which cannot be copied.
    caches = {id(m.cache): mixing._LinearCache() for m in model.modules() if isinstance(m, mixing._Linear)}
    return swap_modules(model, _SWAPS, _KEPT, memo=caches)


def _couple(
    module: Any, z: Tensor, params: Tensor, *, passed: int = 0, inverse: bool
) -> tuple[Tensor, Tensor]:
    """All channels of z but `passed` (see `affine_coupling`), by the scale map of an AffineCoupling."""
    options: dict[str, Any] = {"layout": "interleaved", "passed": passed, "inverse": inverse}
    return _affines.couple(z, params, scale_map=_SCALE_MAPS[module.scale_map], **options)


def _couple_block(block: Any, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    split, coupling, _ = block.flows
    first = (z.shape[1] + 1) // 2
    kept, passed = z[:, :first], first
    if split.mode == "channel_inv":
        kept, passed = z[:, first:], first - z.shape[1]
    return _couple(coupling, z, coupling.param_map(kept), passed=passed, inverse=inverse)


def _other_split(block: Any) -> bool:
    """Whether a block is more than a coupling that passes half of the channels."""
    split, coupling, merge = block.flows
    return (
        split.mode not in ("channel", "channel_inv")
        or merge.mode != split.mode
        or type(coupling) not in (AffineCoupling, PlainAffineCoupling)
        or _coupling_obstacle(coupling) is not None
    )


def _weight(module: Any) -> Tensor:
    return module.log_S if module.use_lu else module.W


def _matrix(module: Any, *, inverse: bool) -> _linears.Map:
    """What an Invertible1x1Conv or InvertibleAffine multiplies by on the way to the latent, or back."""
    if module.use_lu:
        how = _linears.Map(module._assemble_W(), None, module.log_S.sum())
    else:
        how = _linears.Map(module.W, None, torch.linalg.slogdet(module.W.double())[1].to(module.W.dtype))
    if isinstance(module, flows.InvertibleAffine):  # which multiplies from the other side
        how = how._replace(weight=how.weight.T)
    return _linears.inverse_of(how) if inverse else how


def _parameters(module: Any) -> list[Tensor]:
    return [module.P, module.L, module.U, module.log_S, module.sign_S] if module.use_lu else [module.W]


def _convolve(module: Any, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    name = "inverse" if inverse else "forward"
    how = _linears.kept(module, name, _parameters(module), lambda: _matrix(module, inverse=inverse))
    return _linears.apply(z, how)[0], how.log_abs_det * math.prod(z.shape[2:])


def _is_folded(block: Any, z: Tensor) -> bool:
    """Whether a GlowBlock is coupling, 1x1 convolution and a normalisation that knows its numbers."""
    if len(block.flows) != 3 or z.dim() != 4:
        return False
    _, convolution, norm = block.flows
    known = type(convolution) in (Invertible1x1Conv, flows.Invertible1x1Conv) and type(norm) is flows.ActNorm
    return known and bool(norm.data_dep_init_done) and _linears.takes(z, _weight(convolution))


def _folded(block: Any, convolution: Any, norm: Any, *, inverse: bool) -> _linears.Map:
    """exp(s) W^-1 x + t in one map, or the way back."""

    def make() -> _linears.Map:
        scale, shift = norm.s.flatten(), norm.t.flatten()
        how = _matrix(convolution, inverse=not inverse)
        if inverse:
            weight = how.weight * torch.exp(-scale)
            return _linears.Map(weight, -(weight @ shift), how.log_abs_det - scale.sum())
        return _linears.Map(torch.exp(scale)[:, None] * how.weight, shift, how.log_abs_det + scale.sum())

    parameters = [*_parameters(convolution), norm.s, norm.t]
    return _linears.kept(block, "inverse" if inverse else "forward", parameters, make)


def _is_mixed(module: Any) -> bool:
    return isinstance(module.tails, (list, tuple))


def _inverse_obstacle(module: Any) -> str | None:
    """Why `made_inverse` cannot stand for the inverse, or None."""
    net = module.autoregressive_net
    if type(getattr(net, "preprocessing", None)) not in (torch.nn.Identity, type(None)):
        return "made_inverse does not know its preprocessing, such as that of circular features"
    unknown = _masked.obstacle(
        net, made.MADE, made.MaskedLinear, made.MaskedResidualBlock, made.MaskedFeedforwardBlock
    )
    if unknown is not None:
        return unknown
    if isinstance(getattr(module, "tail_bound", None), Tensor):
        return "made_inverse knows one bound for all features"
    return _masked.made_obstacle(net, *(block.activation for block in net.blocks))


def _coupling_obstacle(module: Any) -> str | None:
    """Why `affine_coupling` cannot stand for an AffineCoupling, or None."""
    if not module.scale:
        return "one sum already"
    return None if module.scale_map in _SCALE_MAPS else f"its scale_map is {module.scale_map!r}"


def _block_obstacle(block: Any) -> str | None:
    """Why `affine_coupling` cannot stand for a whole AffineCouplingBlock, or None."""
    return "more than a scaled coupling of half of the channels" if _other_split(block) else None


def _mask_obstacle(module: Any) -> str | None:
    """Why `affine_coupling` cannot stand for a MaskedAffineFlow, or None."""
    return None if bool(((module.b == 0) | (module.b == 1)).all()) else "its mask is not of 0 and 1"


def _layers(net: Any, context: Tensor | None) -> tuple[list[Layer], str]:
    """The layers of a MADE, and its activation; the gates are those of `glu`."""
    layers = [_layer(net.initial_layer, addend=None if context is None else net.context_layer(context))]
    for k, block in enumerate(net.blocks):
        if hasattr(block, "linear_layers"):
            gate = None if context is None else torch.sigmoid(block.context_layer(context))
            layers.append(_layer(block.linear_layers[0], activated=True))
            layers.append(_layer(block.linear_layers[1], activated=True, residual=True, gate=gate))
        elif context is not None:
            raise NotImplementedError("normflows has no context for feedforward blocks")
        else:
            layers.append(_layer(block.linear, activated=k > 0))
    feedforward = len(net.blocks) > 0 and not hasattr(net.blocks[-1], "linear_layers")
    layers.append(_layer(net.final_layer, activated=feedforward))
    names = [_masked.activation_name(block.activation) for block in net.blocks]
    return layers, (names[0] if names else None) or "relu"


def _layer(linear: Any, **wiring: Any) -> Layer:
    return Layer(linear.weight, linear.bias, linear.mask, **wiring)


_SPLINE = "the spline by rq_spline"
_AFFINE = "scale and shift by affine_coupling"
_MADE = "its inverse in one pass by made_inverse"
_CONVOLUTIONS = "three convolutions by conv_net, where no gradient is wanted"
_MATRIX = "one op, invertible_linear, the inverse kept"
_SWAPS = {
    PlainSplineCoupling: Swap(PiecewiseRationalQuadraticCoupling, _SPLINE, _splines.spline_obstacle),
    PlainCDF: Swap(PiecewiseRationalQuadraticCDF, _SPLINE, _splines.spline_obstacle),
    PlainSplineMAF: Swap(
        MaskedPiecewiseRationalQuadraticAutoregressive,
        f"{_SPLINE}, {_MADE}",
        _splines.spline_obstacle,
        _inverse_obstacle,
    ),
    PlainMAF: Swap(MaskedAffineAutoregressive, f"{_AFFINE}, {_MADE}", inverse_obstacle=_inverse_obstacle),
    nets.ConvNet2d: Swap(_convolutions.ConvNet2d, _CONVOLUTIONS, _convolutions.obstacle),
    PlainAffineCoupling: Swap(AffineCoupling, _AFFINE, _coupling_obstacle),
    flows.AffineCouplingBlock: Swap(
        AffineCouplingBlock, f"{_AFFINE} without split and merge", _block_obstacle
    ),
    flows.MaskedAffineFlow: Swap(MaskedAffineFlow, _AFFINE, _mask_obstacle),
    flows.Invertible1x1Conv: Swap(Invertible1x1Conv, _MATRIX),
    flows.InvertibleAffine: Swap(InvertibleAffine, _MATRIX),
    flows.LULinearPermute: Swap(LULinearPermute, _MATRIX),
    flows.GlowBlock: Swap(GlowBlock, "1x1 convolution and normalisation folded into one product"),
}
_KEPT: dict[type, str] = {
    flows.CoupledRationalQuadraticSpline: "",
    flows.CircularCoupledRationalQuadraticSpline: "",
    flows.AutoregressiveRationalQuadraticSpline: "",
    flows.CircularAutoregressiveRationalQuadraticSpline: "",
    flows.Reverse: "",
    flows.Composite: "",
    mixing._Permutation: "",  # parts of a LULinearPermute
    mixing._Linear: "",
    flows.ActNorm: "one product and one sum already; it initialises itself as before",
    flows.Permute: "one gather already",
    flows.Split: "moves numbers and no more",
    flows.Squeeze: "moves numbers and no more",
    flows.Flow: "fastgen has nothing for it",
    distributions.BaseDistribution: "draws and weighs the noise as before",
}

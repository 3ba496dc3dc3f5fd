"""The flows of nflows, computed with fastgen's ops.

Each class here has the name of its base class, and overrides how that computes, never what. Base
distributions are kept, so that `sample` draws the same noise after the same `torch.manual_seed`, and gives
the same samples to rounding. Networks of couplings are kept as well: they are PyTorch's own products already.
"""

from typing import Any

from nflows import distributions, flows, transforms
from nflows.transforms import made
from nflows.transforms.base import InputOutsideDomain
from nflows.transforms.linear import Linear, LinearCache
from torch import Tensor

from fastgen.integrations import Report, _affines, _linears, _masked, _splines
from fastgen.integrations._masked import Layer
from fastgen.integrations._modules import Swap, swap_modules
from fastgen.ops import Affine


class AffineCouplingTransform(transforms.AffineCouplingTransform):
    """Scale, shift and log-determinant in one op."""

    def _coupling_transform_forward(self, inputs: Tensor, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        return _affines.couple(inputs, transform_params, **_SIGMOID)

    def _coupling_transform_inverse(self, inputs: Tensor, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        return _affines.couple(inputs, transform_params, **_SIGMOID, inverse=True)


class AdditiveCouplingTransform(transforms.AdditiveCouplingTransform):
    """One sum; nflows also takes the logarithms of scales that are one."""

    def _coupling_transform_forward(self, inputs: Tensor, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        return inputs + transform_params, inputs.new_zeros(len(inputs))

    def _coupling_transform_inverse(self, inputs: Tensor, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        return inputs - transform_params, inputs.new_zeros(len(inputs))


class PiecewiseRationalQuadraticCouplingTransform(transforms.PiecewiseRationalQuadraticCouplingTransform):
    """The spline in one op; the network's outputs stay as they are instead of being divided in place."""

    def _coupling_transform(
        self, inputs: Tensor, transform_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        _check_domain(self, inputs)
        params = _splines.of_pixels(transform_params, inputs.shape[1])
        scale = _splines.softmax_scale(self.transform_net)
        return _splines.spline_of_module(self, inputs, params, scale=scale, inverse=inverse)


class PiecewiseRationalQuadraticCDF(transforms.PiecewiseRationalQuadraticCDF):
    """The spline in one op."""

    def _spline(self, inputs: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        _check_domain(self, inputs)
        params = _splines.shared_params(self, len(inputs))
        return _splines.spline_of_module(self, inputs, params, inverse=inverse)


class MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
    transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
):
    """The spline in one op, and the inverse at the cost of about one pass of the network."""

    def _elementwise(
        self, inputs: Tensor, autoregressive_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        _check_domain(self, inputs)
        params = _splines.of_pixels(autoregressive_params, inputs.shape[1])
        scale = _splines.softmax_scale(self.autoregressive_net)
        return _splines.spline_of_module(self, inputs, params, scale=scale, inverse=inverse)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data, with log|det| of that direction (N,)."""
        if not _masked.in_one_pass(self, inputs, _inverse_obstacle(self)):
            return super().inverse(inputs, context)
        _check_domain(self, inputs)
        layers, activation = _layers(self.autoregressive_net, context)
        how = _splines.spline_of(self, _splines.softmax_scale(self.autoregressive_net))
        return _masked.invert_spline(self, inputs, layers, activation, how)


class MaskedAffineAutoregressiveTransform(transforms.MaskedAffineAutoregressiveTransform):
    """Scale and shift in one op, and the inverse at the cost of about one pass of the network."""

    def _elementwise_forward(self, inputs: Tensor, autoregressive_params: Tensor) -> tuple[Tensor, Tensor]:
        return _affines.couple(inputs, autoregressive_params, **_SOFTPLUS, min_scale=self._epsilon)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data, with log|det| of that direction (N,)."""
        if not _masked.in_one_pass(self, inputs, _inverse_obstacle(self)):
            return super().inverse(inputs, context)
        layers, activation = _layers(self.autoregressive_net, context)
        return _masked.invert(self, inputs, layers, activation, Affine("softplus", min_scale=self._epsilon))


class LULinear(transforms.LULinear):
    """One product with L U, or with its inverse, which is kept until the parameters change."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """L U x + b, with log|det| (N,)."""
        if not _linears.takes(inputs, self.bias) or inputs.dim() != 2:
            return super().forward(inputs, context)
        return _linears.apply(inputs, _linears.lu_map(self))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x from L U x + b, with log|det| of that direction (N,)."""
        if not _linears.takes(inputs, self.bias) or inputs.dim() != 2:
            return super().inverse(inputs, context)
        return _linears.apply(inputs, _linears.lu_map(self, inverse=True))


class OneByOneConvolution(transforms.OneByOneConvolution):
    """Permutation and product in one, or its inverse, which is kept until the parameters change."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """L U x[permutation] + b for every pixel, with log|det| (N,)."""
        if inputs.dim() != 4 or not _linears.takes(inputs, self.bias):
            return super().forward(inputs, context)
        return _linears.apply(inputs, _linears.lu_map(self, self.permutation))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The inverse for every pixel, with log|det| of that direction (N,)."""
        if inputs.dim() != 4 or not _linears.takes(inputs, self.bias):
            return super().inverse(inputs, context)
        return _linears.apply(inputs, _linears.lu_map(self, self.permutation, inverse=True))


def accelerate(model: Any) -> tuple[Any, Report]:
    """The accelerated copy of a flow or a transform, and the report."""
    # A cache may hold tensors with a history, which cannot be copied.
    caches = {id(part.cache): LinearCache() for part in model.modules() if isinstance(part, Linear)}
    return swap_modules(model, _SWAPS, _KEPT, memo=caches)


def _check_domain(module: Any, inputs: Tensor) -> None:
    if module.tails is None and inputs.numel() and bool(((inputs < 0) | (inputs > 1)).any()):
        raise InputOutsideDomain()


def _affine_obstacle(module: Any) -> str | None:
    """Later versions of nflows let users choose the scale map."""
    return "its scale_activation is its own" if hasattr(module, "scale_activation") else None


def _inverse_obstacle(module: Any) -> str | None:
    """Why `made_inverse` cannot stand for the inverse, or None."""
    net = module.autoregressive_net
    unknown = _masked.obstacle(
        net, made.MADE, made.MaskedLinear, made.MaskedResidualBlock, made.MaskedFeedforwardBlock
    )
    if unknown is not None:
        return unknown
    return _masked.made_obstacle(net, net.activation, *(block.activation for block in net.blocks))


def _layers(net: Any, context: Tensor | None) -> tuple[list[Layer], str]:
    """The layers of a MADE, and its activation."""
    added = None if context is None else net.activation(net.context_layer(context))
    layers = [_layer(net.initial_layer, addend=added)]
    for block in net.blocks:
        if net.use_residual_blocks:
            added = None if context is None else block.context_layer(context)
            layers.append(_layer(block.linear_layers[0], activated=True, addend=added))
            layers.append(_layer(block.linear_layers[1], activated=True, residual=True))
        else:
            layers.append(_layer(block.linear, activated=True))
    layers.append(_layer(net.final_layer, activated=not net.use_residual_blocks))
    name = _masked.activation_name(net.activation)
    assert name is not None
    return layers, name


def _layer(linear: Any, **wiring: Any) -> Layer:
    return Layer(linear.weight, linear.bias, linear.mask, **wiring)


_SIGMOID: dict[str, Any] = {"scale_map": "sigmoid", "min_scale": 1e-3}
_SOFTPLUS: dict[str, Any] = {"scale_map": "softplus", "layout": "interleaved", "first": "scale"}
_SPLINE = "the spline by rq_spline"
_AFFINE = "scale and shift by affine_coupling"
_MADE = "its inverse in one pass by made_inverse"
_MATRIX = "one product by invertible_linear, the inverse kept"
_SWAPS = {
    transforms.AffineCouplingTransform: Swap(AffineCouplingTransform, _AFFINE, _affine_obstacle),
    transforms.AdditiveCouplingTransform: Swap(AdditiveCouplingTransform, "one sum"),
    transforms.PiecewiseRationalQuadraticCouplingTransform: Swap(
        PiecewiseRationalQuadraticCouplingTransform, _SPLINE, _splines.spline_obstacle
    ),
    transforms.PiecewiseRationalQuadraticCDF: Swap(
        PiecewiseRationalQuadraticCDF, _SPLINE, _splines.spline_obstacle
    ),
    transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform: Swap(
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        f"{_SPLINE}, {_MADE}",
        _splines.spline_obstacle,
        _inverse_obstacle,
    ),
    transforms.MaskedAffineAutoregressiveTransform: Swap(
        MaskedAffineAutoregressiveTransform, f"{_AFFINE}, {_MADE}", inverse_obstacle=_inverse_obstacle
    ),
    transforms.LULinear: Swap(LULinear, _MATRIX),
    transforms.OneByOneConvolution: Swap(OneByOneConvolution, _MATRIX),
}
_KEPT = {
    flows.Flow: "",
    transforms.CompositeTransform: "",
    transforms.MultiscaleCompositeTransform: "",
    transforms.InverseTransform: "",
    transforms.Permutation: "one gather already",
    transforms.SqueezeTransform: "one copy already",
    transforms.ActNorm: "one product and one sum already; it initialises itself as before",
    transforms.BatchNorm: "its statistics belong to training",
    transforms.Transform: "fastgen has nothing for it",
    distributions.Distribution: "draws and weighs the noise as before",
}

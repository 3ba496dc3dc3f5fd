"""The flows of zuko, computed with fastgen's ops.

zuko's modules are lazy: `flow(c)` makes a distribution. What is swapped are the modules that make the
transformations; `log_prob`, `sample`, `rsample` and `rsample_and_log_prob` of the distribution mean what they
did. Base distributions are kept, so that they draw the same noise after the same `torch.manual_seed`, and
samples are the same to rounding. So are the networks: they are PyTorch's own products already.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.transforms import _InverseTransform
from zuko import lazy, nn
from zuko.flows import autoregressive, coupling, gaussianization
from zuko.flows.spline import CircularRQSTransform
from zuko.transforms import (
    AutoregressiveTransform,
    CouplingTransform,
    MonotonicAffineTransform,
    MonotonicRQSTransform,
)
from zuko.utils import broadcast

from fastgen.integrations import Report, _affines, _masked
from fastgen.integrations._masked import Layer
from fastgen.integrations._modules import Swap, swap_modules
from fastgen.ops import Affine, Spline, rq_spline

Rule = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]


class _Direct(Transform):
    """A transformation of vectors that gives values and log-determinants of both directions in one go."""

    domain = codomain = constraints.real_vector
    bijective = True

    def both(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """The transformation of x (..., D), or its inverse, with the log-determinant of that direction."""
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        return self.both(x, False)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.both(y, True)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.both(x, False)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.both(x, False)

    @property
    def inv(self) -> Transform:
        return _Inverse(self)


class _Inverse(_InverseTransform):
    """The inverse of a `_Direct`; zuko would go forth as well, for the log-determinant."""

    _inv: _Direct

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._inv.both(x, True)


class _ElementWise(_Direct):
    """Each element with its own parameters (..., D, P), by one of the rules below."""

    def __init__(self, rule: Rule, params: Tensor) -> None:
        super().__init__()
        self.rule, self.params = rule, params

    def both(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        shape = torch.broadcast_shapes(x.shape, self.params.shape[:-1])
        rows, features = math.prod(shape[:-1]), shape[-1]
        params = self.params.expand(*shape, -1).reshape(rows, features, self.params.shape[-1])
        y, ladj = self.rule(x.expand(shape).reshape(rows, features), params.to(x.dtype), inverse)
        return y.view(shape), ladj.view(shape[:-1])


class _Coupling(_Direct):
    """zuko's `CouplingTransform`, whose inverse knows its log-determinant without going forth."""

    def __init__(self, plain: CouplingTransform) -> None:
        super().__init__()
        self.plain = plain

    def both(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        x_a, x_b = self.plain.split(x)
        y_b, ladj = self.plain.meta(x_a).both(x_b, inverse)
        return self.plain.merge(x_a, y_b, x.shape), ladj


class _Autoregressive(_Direct):
    """zuko's `AutoregressiveTransform`; `invert` gives the inverse at the cost of about one pass, or None."""

    def __init__(
        self, plain: AutoregressiveTransform, invert: Callable[[Tensor], tuple[Tensor, Tensor] | None]
    ) -> None:
        super().__init__()
        self.plain, self.invert = plain, invert

    def both(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if not inverse:
            return self.plain.meta(x).both(x, False)
        if (found := self.invert(x)) is not None:
            return found
        y = self.plain._inverse(x)
        return y, -self.plain.meta(y).both(y, False)[1]


class MaskedAutoregressiveTransform(autoregressive.MaskedAutoregressiveTransform):
    """The univariate transformation in one op, and the inverse at the cost of about one pass."""

    def meta(self, c: Tensor | None, x: Tensor) -> Transform:
        """The transformation of each element, with the parameters that x (..., D) and c (..., C) give."""
        return _element_wise(self, self.hyper(_beside(x, c)))

    def forward(self, c: Tensor | None = None) -> Transform:
        """The transformation given the context."""
        return _Autoregressive(super().forward(c), functools.partial(self._invert, c))

    def _invert(self, c: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor] | None:
        if c is not None:
            z, c = broadcast(z, c, ignore=1)
        flat, context = z.reshape(-1, z.shape[-1]), None if c is None else c.reshape(-1, c.shape[-1])
        if _inverse_obstacle(self) is not None or not _masked.takes(flat, self.hyper):
            return None
        rule = _rule(self)
        assert rule is not None and rule.masked is not None
        layers, activation = _layers(self.hyper, context, z.shape[-1])
        if isinstance(rule.masked, Affine):  # zuko puts the shift first, the op the scale
            last = layers[-1]
            weight, bias = _exchanged(last.weight, 0), _exchanged(last.bias, 0)
            addend = None if last.addend is None else _exchanged(last.addend, 1)
            layers[-1] = last._replace(weight=weight, bias=bias, addend=addend)
        x, ladj = _masked.invert(self, flat, layers, activation, rule.masked)
        return x.view(z.shape), ladj.view(z.shape[:-1])


class GeneralCouplingTransform(coupling.GeneralCouplingTransform):
    """The univariate transformation in one op; the inverse gives its log-determinant along with it."""

    def meta(self, c: Tensor | None, x: Tensor) -> Transform:
        """The transformation of each element, with the parameters that x (..., D) and c (..., C) give."""
        return _element_wise(self, self.hyper(_beside(x, c)))

    def forward(self, c: Tensor | None = None) -> Transform:
        """The transformation given the context."""
        return _Coupling(super().forward(c))


class ElementWiseTransform(gaussianization.ElementWiseTransform):
    """The univariate transformation in one op."""

    def forward(self, c: Tensor | None = None) -> Transform:
        """The transformation given the context."""
        if c is not None:
            return _element_wise(self, self.hyper(c))
        parts = [phi.view(len(phi), -1) for phi in self.phi]
        return _element_wise(self, torch.cat(parts, 1).flatten())


def accelerate(model: Any) -> tuple[Any, Report]:
    """The accelerated copy of a lazy flow or transform, and the report."""
    return swap_modules(model, _SWAPS, _KEPT)


class _Rule(NamedTuple):
    """How y and log|det dy/dx| (N,) follow from x (N, D) and params (N, D, P), also for `made_inverse`."""

    apply: Rule
    masked: Affine | Spline | None


def _rule(module: Any) -> _Rule | None:
    """The rule of a module's univariate transformation, or None if fastgen has none."""
    univariate: Any = module.univariate
    options: dict[str, Any] = {}
    if isinstance(univariate, functools.partial) and not univariate.args:
        univariate, options = univariate.func, univariate.keywords
    slope, shapes = options.get("slope", 1e-3), [tuple(shape) for shape in module.shapes]
    if not options.keys() <= {"slope", "bound"} or not 0 < slope < 1:
        return None
    if univariate is MonotonicAffineTransform and "bound" not in options and shapes == [(), ()]:
        clamp = -math.log(slope)
        return _Rule(functools.partial(_affine, clamp), Affine("softclip", clamp=clamp))
    bins = module.shapes[0][0] if len(shapes[0]) == 1 else 0
    if shapes != [(bins,), (bins,), (bins - 1,)]:
        return None
    bound = options.get("bound", 5.0) if univariate is MonotonicRQSTransform else math.pi
    how = Spline(bins=bins, bound=bound, min_derivative=slope, parametrization="softclip")
    if univariate is MonotonicRQSTransform:
        return _Rule(functools.partial(_spline, how), how)
    if univariate is CircularRQSTransform and "bound" not in options:
        return _Rule(functools.partial(_circular, how), None)
    return None


def _affine(clamp: float, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """`MonotonicAffineTransform`: params are shifts and raw logarithms of scales."""
    options: dict[str, Any] = {"scale_map": "softclip", "clamp": clamp, "layout": "interleaved"}
    return _affines.couple(x, params.flatten(1), **options, first="shift", inverse=inverse)


def _spline(how: Spline, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """`MonotonicRQSTransform`: params are raw widths, heights and derivatives."""
    return rq_spline(x, params, inverse=inverse, **how._asdict())


def _circular(how: Spline, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """`CircularRQSTransform`: a shift by half a turn, then the spline."""
    if not inverse:
        return _spline(how, torch.remainder(x, 2 * math.pi) - math.pi, params, inverse)
    y, ladj = _spline(how, x, params, inverse)
    return torch.remainder(y, 2 * math.pi) - math.pi, ladj


def _element_wise(module: Any, params: Tensor) -> Transform:
    rule = _rule(module)
    assert rule is not None
    return _ElementWise(rule.apply, params.unflatten(-1, (-1, module.total)))


def _exchanged(outputs: Tensor, dim: int) -> Tensor:
    """The two parameters of each feature in the opposite order."""
    return outputs.unflatten(dim, (-1, 2)).flip(dim + 1).flatten(dim, dim + 1)


def _beside(x: Tensor, c: Tensor | None) -> Tensor:
    return x if c is None else torch.cat(broadcast(x, c, ignore=1), -1)


def _layers(hyper: Any, context: Tensor | None, features: int) -> tuple[list[Layer], str]:
    """The layers of a MaskedMLP, whose first one sees the context beside the features, and its activation."""
    layers: list[Layer] = []
    activated, name = False, "relu"
    for part in hyper:
        if isinstance(part, nn.MaskedLinear):
            layers.append(Layer(part.weight, part.bias, part.mask, activated))
        elif isinstance(part, nn.Residual):
            one, activation, two = part
            name = _masked.activation_name(activation) or name
            layers.append(Layer(one.weight, one.bias, one.mask, activated))
            layers.append(Layer(two.weight, two.bias, two.mask, activated=True, residual=True))
        else:
            name = _masked.activation_name(part) or name
        activated = not isinstance(part, (nn.MaskedLinear, nn.Residual))
    first = layers[0]
    if context is not None:
        to_context = (first.weight * first.mask)[:, features:]
        first = first._replace(addend=context @ to_context.T)
    layers[0] = first._replace(weight=first.weight[:, :features], mask=first.mask[:, :features])
    return layers, name


def _obstacle(module: Any) -> str | None:
    """Why the ops cannot stand for a univariate transformation, or None."""
    if _rule(module) is not None:
        return None
    univariate = getattr(module.univariate, "func", module.univariate)
    return f"fastgen has nothing for {getattr(univariate, '__name__', type(univariate).__name__)}"


def _inverse_obstacle(module: Any) -> str | None:
    """Why `made_inverse` cannot stand for the inverse, or None."""
    rule = _rule(module)
    if rule is None or rule.masked is None:
        return "its network sees what lies before the circular shift, for which made_inverse has nothing"
    unknown = _masked.obstacle(module.hyper, nn.MaskedMLP, nn.MaskedLinear, nn.Residual)
    if unknown is not None:
        return unknown
    names = set()
    for part in module.hyper:
        if type(part) is nn.Residual and [type(p) is nn.MaskedLinear for p in part] == [True, False, True]:
            names.add(_masked.activation_name(part[1]))
        elif type(part) is not nn.MaskedLinear:
            names.add(_masked.activation_name(part))
    if len(names) > 1 or None in names:
        return "made_inverse does not know its activation"
    return None


_UNIVARIATE = "the univariate transformation by affine_coupling or rq_spline"
_SWAPS = {
    autoregressive.MaskedAutoregressiveTransform: Swap(
        MaskedAutoregressiveTransform,
        f"{_UNIVARIATE}, its inverse in one pass by made_inverse",
        _obstacle,
        _inverse_obstacle,
    ),
    coupling.GeneralCouplingTransform: Swap(GeneralCouplingTransform, _UNIVARIATE, _obstacle),
    gaussianization.ElementWiseTransform: Swap(ElementWiseTransform, _UNIVARIATE, _obstacle),
}
_KEPT = {
    lazy.Flow: "",
    lazy.LazyComposedTransform: "",
    lazy.LazyInverse: "",
    lazy.LazyTransform: "fastgen has nothing for it",
    lazy.LazyDistribution: "draws and weighs the noise as before",
}

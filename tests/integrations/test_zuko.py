"""fastgen.accelerate for zuko: distributions mean what they did, forward, backward and in their samples."""

import copy
import math
from functools import partial

import flow_checks as checks
import pytest
import torch
import zuko
from flow_checks import numbers
from torch import nn
from zuko.flows import ElementWiseTransform, GeneralCouplingTransform, MaskedAutoregressiveTransform
from zuko.lazy import UnconditionalDistribution
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from fastgen import accelerate

DTYPES = [torch.float32, torch.float64]
FEATURES, CONTEXT = 5, 3
SMALL = {"transforms": 2, "hidden_features": (11, 12)}
ADJACENCY = torch.tensor(
    [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.bool
)


def base():
    return UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(FEATURES), torch.ones(FEATURES), buffer=True
    )


def spline(kind, c, bins=4, **options):
    univariate = partial(MonotonicRQSTransform, slope=1e-2, bound=2.0)
    return kind(FEATURES, c, univariate=univariate, shapes=[(bins,), (bins,), (bins - 1,)], **options)


# name: flow for so many features of context
FLOWS = {
    "MAF": lambda c: zuko.flows.MAF(FEATURES, c, **SMALL),
    "MAF, random order": lambda c: zuko.flows.MAF(FEATURES, c, randperm=True, **SMALL),
    "MAF, residual": lambda c: zuko.flows.MAF(
        FEATURES, c, transforms=2, hidden_features=(12, 12, 8), residual=True, activation=nn.ELU
    ),
    "MAF, coupling": lambda c: zuko.flows.MAF(FEATURES, c, passes=2, **SMALL),
    "MAF, three passes": lambda c: zuko.flows.MAF(FEATURES, c, passes=3, activation=nn.Tanh, **SMALL),
    "MAF, adjacency": lambda c: zuko.flows.MAF(FEATURES, c, adjacency=ADJACENCY, **SMALL),
    "MAF, no hidden layer": lambda c: zuko.flows.MAF(FEATURES, c, transforms=1, hidden_features=()),
    "MAF, slope": lambda c: zuko.flows.MAF(
        FEATURES, c, univariate=partial(MonotonicAffineTransform, slope=0.2), **SMALL
    ),
    "NSF": lambda c: zuko.flows.NSF(FEATURES, c, bins=4, **SMALL),
    "NSF, coupling": lambda c: zuko.flows.NSF(FEATURES, c, bins=3, slope=1e-2, passes=2, **SMALL),
    "NSF, residual": lambda c: zuko.flows.NSF(
        FEATURES, c, bins=3, transforms=2, hidden_features=(12, 12), residual=True
    ),
    "NSF, bound": lambda c: zuko.lazy.Flow([spline(MaskedAutoregressiveTransform, c)], base()),
    "NCSF": lambda c: zuko.flows.NCSF(FEATURES, c, bins=4, **SMALL),
    "NICE": lambda c: zuko.flows.NICE(FEATURES, c, hidden_features=(8,)),
    "NICE, random masks": lambda c: zuko.flows.NICE(FEATURES, c, randmask=True, normalize=True),
    "spline coupling": lambda c: zuko.lazy.Flow([spline(GeneralCouplingTransform, c)], base()),
    "element-wise": lambda c: zuko.lazy.Flow(
        [spline(ElementWiseTransform, c), ElementWiseTransform(FEATURES, c)], base()
    ),
    "inverse": lambda c: zuko.lazy.Flow(
        [spline(MaskedAutoregressiveTransform, c).inv, spline(GeneralCouplingTransform, c).inv], base()
    ),
}


def flow_of(name, context):
    torch.manual_seed(3)
    return FLOWS[name](CONTEXT if context else 0)


def inside(x):
    """Numbers where a circular flow lives, and beyond the bounds of splines."""
    return 1.2 * x.clamp(-2.5, 2.5)


def log_prob(flow, x, *c):
    return (flow(*c).log_prob(inside(x)),)


def inverse(flow, z, *c):
    transform = flow(*c).transform
    x, ladj = transform.inv.call_and_ladj(inside(z))
    return x, ladj, transform.inv(inside(z))


def sample(flow, *c):
    torch.manual_seed(11)
    distribution = flow(*c)
    with torch.no_grad():
        first = distribution.sample((2, 3))
    x, density = distribution.rsample_and_log_prob((4,))
    return first, distribution.rsample((3,)), x, density


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("context", [False, True], ids=["", "context"])
@pytest.mark.parametrize("name", FLOWS)
def test_densities_samples_and_gradients_are_those_of_zuko(name, context, dtype):
    plain = checks.stirred(flow_of(name, context), dtype)
    before = copy.deepcopy(plain.state_dict())
    fast, report = accelerate(plain)
    given = [numbers(30, CONTEXT, dtype=dtype, seed=2)] if context else []
    x = numbers(30, FEATURES, dtype=dtype)
    checks.check_agreement(plain, fast, [x, *given], log_prob, dtype)
    checks.check_agreement(plain, fast, [x, *given], inverse, dtype)
    checks.check_values(plain, fast, given, sample, dtype)
    checks.check_state(plain, fast, before)
    assert report.replaced


@pytest.mark.parametrize("name", ["MAF", "NSF, coupling", "NICE"])
def test_one_vector_one_context_and_more_dimensions(name):
    plain = checks.stirred(flow_of(name, True), torch.float64)
    fast, _ = accelerate(plain)
    for rows, contexts in (((), ()), ((4,), ()), ((6, 4), (4,)), ((2, 1, 4), (3, 1))):
        x = numbers(*rows, FEATURES, dtype=torch.float64)
        c = numbers(*contexts, CONTEXT, dtype=torch.float64, seed=2)
        if name != "NSF, coupling" and rows == (2, 1, 4):
            continue  # zuko's own couplings and affine maps do not broadcast x to the shape of c
        checks.check_values(plain, fast, [x, c], log_prob, torch.float64)
        checks.check_values(plain, fast, [x, c], inverse, torch.float64)
    for got in inverse(fast, numbers(0, FEATURES, dtype=torch.float64), c[0, 0]):
        assert got.shape[0] == 0


@pytest.mark.parametrize("name", ["MAF", "NSF", "NSF, coupling", "NCSF", "NICE", "element-wise"])
def test_training_goes_on_as_in_zuko(name):
    plain = flow_of(name, True)
    fast, _ = accelerate(plain)
    x, c = numbers(64, FEATURES, dtype=torch.float32), numbers(64, CONTEXT, dtype=torch.float32, seed=2)

    def loss(flow):
        return -log_prob(flow, x, c)[0].mean()

    def reverse(flow):  # as in variational inference: through the samples
        z, density = flow(c).rsample_and_log_prob()
        return (density + z.square().sum(-1)).mean()

    for how in (loss, reverse):
        wanted = checks.losses(plain, how)
        torch.testing.assert_close(checks.losses(fast, how), wanted, rtol=1e-4, atol=1e-4)
        assert wanted[-1] < wanted[0] or how is reverse


@pytest.mark.parametrize("name", ["MAF", "NSF", "NICE", "element-wise"])
def test_copies_files_and_double(name):
    fast, _ = accelerate(checks.stirred(flow_of(name, False), torch.float32))
    checks.check_copies(fast, inverse, numbers(8, FEATURES, dtype=torch.float32))
    checks.check_copies(fast, log_prob, numbers(8, FEATURES, dtype=torch.float32))


def test_elements_at_the_bound_and_narrow_bins_pass():
    torch.manual_seed(0)
    fast, _ = accelerate(zuko.lazy.Flow([spline(GeneralCouplingTransform, 0)], base()))
    with torch.no_grad():
        fast.transform.transforms[0].hyper[-1].weight.mul_(100)
    x = torch.cat([torch.full((1, FEATURES), b) for b in (-2.0, 2.0)] + [4 * torch.rand(2000, FEATURES) - 2])
    for transform in (fast().transform, fast().transform.inv):
        y, ladj = transform.call_and_ladj(x)
        assert y.isfinite().all() and ladj.isfinite().all() and (y.abs() <= 2).all()
        torch.testing.assert_close(y[:2], x[:2])


def test_what_is_kept_is_named_with_its_reason():
    def kept(flow):
        fast, report = accelerate(flow)
        x = inside(numbers(8, FEATURES, dtype=torch.float32))
        torch.testing.assert_close(fast().log_prob(x), flow().log_prob(x), rtol=1e-5, atol=1e-5)
        return {part.name.partition(": ")[2]: part.note for part in report.kept}

    inverse_of = "MaskedAutoregressiveTransform.inverse"
    assert "circular" in kept(zuko.flows.NCSF(FEATURES, transforms=1))[inverse_of]
    assert "activation" in kept(zuko.flows.MAF(FEATURES, transforms=1, activation=nn.Softsign))[inverse_of]
    assert "noise" in kept(zuko.flows.MAF(FEATURES))["UnconditionalDistribution"]
    mixed = zuko.lazy.Flow(
        [ElementWiseTransform(FEATURES), *zuko.flows.BPF(FEATURES).transform.transforms], base()
    )
    assert kept(mixed)["MaskedAutoregressiveTransform"] == "fastgen has nothing for BoundedBernsteinTransform"
    for flow in (zuko.flows.GF(FEATURES), zuko.flows.BPF(FEATURES), zuko.flows.CNF(FEATURES)):
        with pytest.raises(TypeError, match="fastgen knows nothing to replace"):
            accelerate(flow)


def test_a_distribution_or_a_class_in_place_of_a_flow_is_refused():
    with pytest.raises(TypeError, match="NormalizingFlow, in which fastgen knows nothing to replace"):
        accelerate(zuko.flows.MAF(FEATURES, **SMALL)())
    with pytest.raises(TypeError, match="model is the class MAF, wanted a model of that class"):
        accelerate(zuko.flows.MAF)


def test_one_feature_is_element_wise_in_zuko_too():
    plain = checks.stirred(zuko.flows.NSF(1, CONTEXT, bins=3), torch.float64)
    fast, report = accelerate(plain)
    inputs = [numbers(9, 1, dtype=torch.float64), numbers(9, CONTEXT, dtype=torch.float64, seed=2)]
    checks.check_agreement(plain, fast, inputs, log_prob, torch.float64)
    assert report.replaced[0].name.endswith("ElementWiseTransform")


def test_the_circle_is_closed():
    fast, _ = accelerate(checks.stirred(flow_of("NCSF", False), torch.float64))
    x = math.pi * (2 * torch.rand(50, FEATURES, dtype=torch.float64) - 1)
    transform = fast().transform
    torch.testing.assert_close(transform.inv(transform(x)), x, rtol=1e-8, atol=1e-8)


def test_a_network_of_ones_own_and_hooks_keep_the_inverse_of_zuko():
    z = numbers(4, FEATURES, dtype=torch.float64)
    for reason in ("hooks", "Own"):
        plain = checks.stirred(MaskedAutoregressiveTransform(FEATURES, hidden_features=(8,)), torch.float64)
        if reason == "hooks":
            plain.hyper.register_forward_hook(lambda module, args, out: 0.5 * out)
        else:
            own = type("Own", (type(plain.hyper),), {})
            own.forward = lambda self, x, own=own: 0.5 * super(own, self).forward(x)
            plain.hyper.__class__ = own
        fast, report = accelerate(plain)
        assert any("inverse" in part.name and reason in part.note for part in report.kept)
        torch.testing.assert_close(fast().inv(z), plain().inv(z))

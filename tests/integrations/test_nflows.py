"""fastgen.accelerate for nflows: what a flow means is nflows' own, forward, backward and in its samples."""

import copy

import flow_checks as checks
import pytest
import torch
from flow_checks import numbers
from nflows import distributions, flows, transforms
from nflows.nn import nets
from nflows.transforms.base import InputOutsideDomain
from small_nflows import (
    AFFINE,
    CONTEXT,
    DTYPES,
    FEATURES,
    LAYERS,
    MAF,
    SPLINE,
    Plain,
    flow_of,
    inverse,
    log_prob,
    mask,
    sample,
)
from torch import nn

from fastgen import accelerate

pytestmark = pytest.mark.filterwarnings("ignore:Inputs to the softmax", "ignore:torch.triangular_solve")


@pytest.fixture
def dtype(request):
    """The dtype in which the base distributions of nflows draw."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str, indirect=True)
@pytest.mark.parametrize("context", [False, True], ids=["", "context"])
@pytest.mark.parametrize("name", LAYERS)
def test_densities_samples_and_gradients_are_those_of_nflows(name, context, dtype):
    plain = checks.stirred(flow_of(name, context), dtype)
    before = copy.deepcopy(plain.state_dict())
    fast, report = accelerate(plain)
    given = [numbers(40, CONTEXT, dtype=dtype, seed=2)] if context else []
    x = 1.5 * numbers(40, FEATURES, dtype=dtype)
    checks.check_agreement(plain, fast, [x, *given], log_prob, dtype)
    checks.check_agreement(plain, fast, [x, *given], inverse, dtype)
    checks.check_values(plain, fast, [c[:4] for c in given], sample, dtype)
    checks.check_state(plain, fast, before)
    assert report.replaced


def image_flow():
    """Two scales of squeeze, norm, 1x1 convolution and couplings, as a Glow in nflows."""
    torch.manual_seed(4)
    convs = lambda inputs, outputs: nets.ConvResidualNet(inputs, outputs, 6, num_blocks=1)  # noqa: E731
    scales = transforms.MultiscaleCompositeTransform(2)
    shape = (1, 4, 4)
    for scale in range(2):
        shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
        half = torch.arange(shape[0]) % 2
        layers = [
            transforms.SqueezeTransform(),
            transforms.ActNorm(shape[0]),
            transforms.OneByOneConvolution(shape[0], identity_init=False),
            AFFINE(half, convs),
            SPLINE(1 - half, convs, 3, "linear", 2.0, scale == 1, [*shape[1:]]),
        ]
        shape = scales.add_transform(transforms.CompositeTransform(layers), shape)
    return flows.Flow(scales, distributions.StandardNormal([16]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str, indirect=True)
def test_images(dtype):
    plain = checks.stirred(image_flow(), dtype)
    fast, report = accelerate(plain)
    checks.check_agreement(plain, fast, [numbers(9, 1, 4, 4, dtype=dtype)], log_prob, dtype)
    checks.check_agreement(plain, fast, [numbers(9, 16, dtype=dtype)], inverse, dtype)
    checks.check_values(plain, fast, [], sample, dtype)
    assert len(report.replaced) == 7


@pytest.mark.parametrize("build", [
    lambda: flows.SimpleRealNVP(FEATURES, 8, 2, 1, batch_norm_between_layers=True),
    lambda: flows.SimpleRealNVP(FEATURES, 8, 2, 1, use_volume_preserving=True, batch_norm_within_layers=True),
    lambda: flows.MaskedAutoregressiveFlow(FEATURES, 8, 2, 2, batch_norm_between_layers=True),
    lambda: flows.MaskedAutoregressiveFlow(FEATURES, 8, 2, 1, False, True, True),
    lambda: flow_of("NSF", True),
    lambda: flow_of("spline coupling", True),
    lambda: flow_of("MAF, dropout", True),
    lambda: flow_of("LU", False),
])  # fmt: skip
def test_training_goes_on_as_in_nflows(build):
    torch.manual_seed(0)
    plain = build().train()
    fast, _ = accelerate(plain)
    x, given = numbers(64, FEATURES, dtype=torch.float32), numbers(64, CONTEXT, dtype=torch.float32, seed=2)
    wants_context = not isinstance(plain._embedding_net, nn.Identity)

    def loss(flow):
        return -flow.log_prob(x, *([given] if wants_context else [])).mean()

    torch.testing.assert_close(checks.losses(fast, loss), checks.losses(plain, loss), rtol=1e-4, atol=1e-4)
    assert checks.losses(fast, loss)[-1] < checks.losses(fast, loss)[0]


def test_one_feature_still_sees_its_context():
    """Its hidden units are reached by no feature, and come before it all the same."""
    plain = checks.stirred(MAF(1, 6, context_features=CONTEXT), torch.float64)
    fast, _ = accelerate(plain)
    inputs = [numbers(9, 1, dtype=torch.float64), numbers(9, CONTEXT, dtype=torch.float64, seed=2)]
    checks.check_agreement(plain, fast, inputs, lambda flow, *given: flow.inverse(*given), torch.float64)


def test_one_context_goes_for_all_rows():
    plain = checks.stirred(MAF(FEATURES, 8, context_features=CONTEXT), torch.float64)
    fast, _ = accelerate(plain)
    z, context = numbers(7, FEATURES, dtype=torch.float64), numbers(1, CONTEXT, dtype=torch.float64, seed=2)
    for given in (context, context[0]):
        checks.check_agreement(plain, fast, [z], lambda flow, z, c=given: flow.inverse(z, c), torch.float64)


@pytest.mark.parametrize("name", ["spline coupling, unconditional", "NSF", "MAF, random masks", "LU"])
def test_copies_files_and_double(name):
    fast, _ = accelerate(checks.stirred(flow_of(name, False), torch.float32))
    checks.check_copies(fast, inverse, numbers(8, FEATURES, dtype=torch.float32))
    checks.check_copies(fast, log_prob, numbers(8, FEATURES, dtype=torch.float32))


def test_masks_that_a_file_brings_are_seen():
    one, other = (flow_of("MAF, random masks", False) for _ in range(2))
    torch.manual_seed(99)
    other = flows.Flow(transforms.CompositeTransform(LAYERS["MAF, random masks"](None)), one._distribution)
    one, other = (checks.stirred(flow, torch.float64, seed) for seed, flow in enumerate((one, other)))
    fast, _ = accelerate(one)
    z = numbers(8, FEATURES, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.allclose(inverse(fast, z)[0], inverse(other, z)[0])
        fast.load_state_dict(other.state_dict())
        torch.testing.assert_close(inverse(fast, z), inverse(other, z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [transforms.LULinear, transforms.OneByOneConvolution])
def test_a_kept_inverse_follows_its_parameters(kind):
    plain = checks.stirred(kind(FEATURES), torch.float64)
    fast, _ = accelerate(plain)
    z = numbers(8, FEATURES, 2, 2, dtype=torch.float64)
    z = z[..., 0, 0] if kind is transforms.LULinear else z
    with torch.no_grad():
        for change in (lambda p: p.add_(0.1), lambda p: p.data.mul_(1.5), lambda p: p.data.copy_(p.flip(0))):
            for part in (plain, fast):
                change(part.bias)
                change(part.upper_entries)
            torch.testing.assert_close(fast.inverse(z), plain.inverse(z), rtol=1e-9, atol=1e-9)
        plain.eps = fast.eps = 0.25  # which is no parameter
        for run in ("forward", "inverse"):
            wanted = getattr(plain, run)(z)
            torch.testing.assert_close(getattr(fast, run)(z), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fast.inverse(z)[0], plain.inverse(z)[0], rtol=1e-9, atol=1e-9)
    assert fast.inverse(z)[0].requires_grad


@pytest.mark.parametrize("tails, bound", [("linear", 3.0), ("linear", 50.0), (None, 1.0)])
@pytest.mark.parametrize("inverse", [False, True])
def test_inputs_at_the_bound_and_narrow_bins_pass(tails, bound, inverse):
    """nflows has no bin for x = bound from 32 on, and stops where a discriminant rounds below 0."""
    torch.manual_seed(0)
    plain = SPLINE(mask(0), Plain, num_bins=6, tails=tails, tail_bound=bound)
    with torch.no_grad():
        plain.transform_net[2].weight.mul_(40)
    fast, _ = accelerate(plain)
    low = 0.0 if tails is None else -bound
    x = torch.cat([torch.full((1, FEATURES), low), torch.full((1, FEATURES), bound)])
    x = torch.cat([x, low + (bound - low) * torch.rand(2000, FEATURES)])
    y, log_det = (fast.inverse if inverse else fast)(x)
    assert y.isfinite().all() and log_det.isfinite().all()
    assert ((y >= low) & (y <= bound)).all()
    transformed = plain.transform_features
    torch.testing.assert_close(y[:2, transformed], x[:2, transformed])


def test_the_box_is_guarded_as_in_nflows():
    fast, _ = accelerate(SPLINE(mask(0), Plain, num_bins=4))
    for run in (fast, fast.inverse):
        with pytest.raises(InputOutsideDomain):
            run(torch.full((2, FEATURES), 1.5))


def test_the_networks_outputs_are_not_divided_in_place():
    class Table(nn.Module):
        """A network whose output is its parameter, which nflows divides by 4 each time."""

        hidden_features = 16

        def __init__(self, inputs, outputs):
            super().__init__()
            self.table = nn.Parameter(torch.randn(7, outputs))

        def forward(self, x, context=None):
            return self.table

    fast, _ = accelerate(SPLINE(mask(0), Table, num_bins=4, tails="linear"))
    before = fast.transform_net.table.detach().clone()
    with torch.no_grad():
        fast(torch.randn(7, FEATURES))
    assert torch.equal(fast.transform_net.table, before)

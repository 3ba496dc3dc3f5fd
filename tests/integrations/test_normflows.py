"""fastgen.accelerate for normflows: forward is from latent to data, and all means what it did."""

import copy

import flow_checks as checks
import normflows
import pytest
import torch
from flow_checks import numbers
from normflows import distributions, flows, nets
from normflows.distributions.base import ConditionalDiagGaussian
from normflows.flows.neural_spline.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressive
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
from torch import nn

from fastgen import accelerate

DTYPES = [torch.float32, torch.float64]
FEATURES, CONTEXT = 5, 3
BOUNDS = torch.tensor([3.0, 2.0, 2.5, 3.5, 1.5])


def masked(scale=True):
    b = (torch.arange(FEATURES) % 2).float()
    nets_ = [nets.MLP([FEATURES, 8, FEATURES], init_zeros=True) for _ in range(2)]
    return flows.MaskedAffineFlow(b, nets_[0], nets_[1] if scale else None)


def block(scale_map, mode, scale=True):
    one, two = (2, 3) if mode == "channel_inv" else (3, 2)
    net = nets.MLP([one, 8, (2 if scale else 1) * two])
    return flows.AffineCouplingBlock(net, scale, scale_map, mode)


def periodic(kind, **options):
    return [kind(FEATURES, 1, 8, [0, 3], num_bins=4, **options)]


# name: layers
LAYERS = {
    "block, exp": lambda: [block("exp", "channel"), flows.Permute(FEATURES, "swap")],
    "block, sigmoid": lambda: [block("sigmoid", "channel_inv"), flows.Permute(FEATURES)],
    "block, sigmoid_inv": lambda: [block("sigmoid_inv", "channel"), flows.LULinearPermute(FEATURES)],
    "block, shift": lambda: [block("exp", "channel", scale=False), flows.InvertibleAffine(FEATURES)],
    "masked": lambda: [masked(), flows.InvertibleAffine(FEATURES, use_lu=False), masked(False)],
    "reversed": lambda: [flows.Reverse(masked()), flows.MaskedAffineAutoregressive(FEATURES, 7)],
    "MAF": lambda: [
        flows.MaskedAffineAutoregressive(FEATURES, 9, num_blocks=2),
        flows.LULinearPermute(FEATURES),
    ],
    "MAF, feedforward": lambda: [
        flows.MaskedAffineAutoregressive(FEATURES, 9, use_residual_blocks=False, random_mask=True)
    ],
    "circular, coupling": lambda: periodic(flows.CircularCoupledRationalQuadraticSpline),
    "circular, bounds": lambda: periodic(flows.CircularCoupledRationalQuadraticSpline, tail_bound=BOUNDS),
    "circular, autoregressive": lambda: periodic(flows.CircularAutoregressiveRationalQuadraticSpline),
    "all circular": lambda: [flows.CoupledRationalQuadraticSpline(FEATURES, 1, 8, tails="circular")],
    "coupling, bounds": lambda: [
        PiecewiseRationalQuadraticCoupling(
            torch.arange(FEATURES) % 2, lambda i, o: nets.ResidualNet(i, o, 8), 3, "linear", BOUNDS, True
        )
    ],
}

# name: layers for a context of so many features, or None
CONDITIONAL = {
    "spline coupling": lambda c: [
        flows.CoupledRationalQuadraticSpline(FEATURES, 1, 8, c, num_bins=4, reverse_mask=reverse)
        for reverse in (False, True)
    ],
    "spline coupling, tanh": lambda c: [
        flows.CoupledRationalQuadraticSpline(FEATURES, 2, 8, c, activation=nn.Tanh),
        flows.LULinearPermute(FEATURES),
    ],
    "NSF": lambda c: [flows.AutoregressiveRationalQuadraticSpline(FEATURES, 2, 9, c, num_bins=4)],
    "NSF, permuted": lambda c: [
        flows.AutoregressiveRationalQuadraticSpline(FEATURES, 1, 9, c, permute_mask=True, init_identity=False)
    ],
    "MAF with context": lambda c: [flows.MaskedAffineAutoregressive(FEATURES, 9, c, num_blocks=1)],
}  # fmt: skip


def model_of(name, context=False):
    torch.manual_seed(3)
    base = distributions.DiagGaussian(FEATURES)
    if name in LAYERS:
        return normflows.NormalizingFlow(base, LAYERS[name]())
    if not context:
        return normflows.NormalizingFlow(base, CONDITIONAL[name](None))
    encoder = nn.Linear(CONTEXT, 2 * FEATURES)
    base = ConditionalDiagGaussian(FEATURES, encoder)
    return normflows.ConditionalNormalizingFlow(base, CONDITIONAL[name](CONTEXT))


def log_prob(model, x, *context):
    return (model.log_prob(0.6 * x, *context),)


def forward(model, z, *context):
    return model.forward_and_log_det(0.6 * z, *context)


def sample(model, *context):
    torch.manual_seed(11)
    return model.sample(len(context[0]) if context else 7, *context)


@pytest.fixture
def dtype(request):
    """The dtype in which the base distributions of normflows draw."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str, indirect=True)
@pytest.mark.parametrize("name, context", [
    *((name, False) for name in LAYERS), *((name, c) for name in CONDITIONAL for c in (False, True))
])  # fmt: skip
def test_densities_samples_and_gradients_are_those_of_normflows(name, context, dtype):
    plain = checks.stirred(model_of(name, context), dtype)
    before = copy.deepcopy(plain.state_dict())
    fast, report = accelerate(plain)
    given = [numbers(30, CONTEXT, dtype=dtype, seed=2)] if context else []
    x = numbers(30, FEATURES, dtype=dtype)
    checks.check_agreement(plain, fast, [x, *given], log_prob, dtype)
    checks.check_agreement(plain, fast, [x, *given], forward, dtype)
    checks.check_values(plain, fast, given, sample, dtype)
    checks.check_state(plain, fast, before)
    assert report.replaced


def glow(split="channel", use_lu=True, classes=0, scale_map="sigmoid", scale=True):
    """Two levels of GlowBlocks and a squeeze for images of 3 x 8 x 8, as in normflows' example."""
    torch.manual_seed(5)
    levels, bases = [], []
    for channels, shape in ((24, (24, 2, 2)), (12, (6, 4, 4))):
        options = {"scale_map": scale_map, "split_mode": split, "use_lu": use_lu, "scale": scale}
        levels.append([flows.GlowBlock(channels, 8, **options) for _ in range(2)] + [flows.Squeeze()])
        base = (
            distributions.ClassCondDiagGaussian(shape, classes) if classes else distributions.GlowBase(shape)
        )
        bases.append(base)
    model = normflows.MultiscaleFlow(bases, levels, [flows.Merge()], class_cond=bool(classes))
    model.log_prob(numbers(16, 3, 8, 8, dtype=torch.get_default_dtype()), torch.zeros(16, dtype=torch.int64))
    return model  # whose normalisations have seen a batch


def of_images(model, x):
    return (model.log_prob(x, None),)


def from_latent(model, *z):
    return model.forward_and_log_det(list(z))


GLOWS = {
    "channel": {},
    "channel_inv": {"split": "channel_inv", "scale_map": "exp"},
    "checkerboard": {"split": "checkerboard"},
    "no LU": {"use_lu": False, "scale_map": "sigmoid_inv"},
    "shift": {"scale": False},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str, indirect=True)
@pytest.mark.parametrize("name", GLOWS)
def test_glow(name, dtype):
    plain = checks.stirred(glow(**GLOWS[name]), dtype)
    before = copy.deepcopy(plain.state_dict())
    fast, report = accelerate(plain)
    checks.check_agreement(plain, fast, [numbers(6, 3, 8, 8, dtype=dtype)], of_images, dtype)
    latents = [0.5 * numbers(6, 24, 2, 2, dtype=dtype), 0.5 * numbers(6, 6, 4, 4, dtype=dtype, seed=2)]
    checks.check_agreement(plain, fast, latents, from_latent, dtype)
    checks.check_values(plain, fast, [], sample, dtype)
    checks.check_state(plain, fast, before)
    for kind in ("GlowBlock", "ConvNet2d"):
        assert sum(part.name.endswith(f": {kind}") for part in report.replaced) == 4


def test_glow_of_classes():
    plain = checks.stirred(glow(classes=4), torch.float32)
    fast, _ = accelerate(plain)
    x, y = numbers(6, 3, 8, 8, dtype=torch.float32), torch.arange(6) % 4
    torch.testing.assert_close(fast.log_prob(x, y), plain.log_prob(x, y), rtol=1e-5, atol=1e-3)


def test_the_first_batch_initialises_the_normalisations_as_before():
    def fresh():
        torch.manual_seed(0)
        return normflows.NormalizingFlow(distributions.GlowBase((4, 3, 3)), [flows.GlowBlock(4, 6)])

    plain, other = fresh(), fresh()
    fast, _ = accelerate(other)
    x = 3 + 2 * numbers(20, 4, 3, 3, dtype=torch.float32)
    for _ in range(2):  # the second time by the folded product
        torch.testing.assert_close(fast.log_prob(x), plain.log_prob(x), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(fast.state_dict(), plain.state_dict())
    assert fast.flows[0].flows[2].data_dep_init_done and not other.flows[0].flows[2].data_dep_init_done


@pytest.mark.parametrize("name, context", [
    ("block, sigmoid", False), ("masked", False), ("MAF", False), ("circular, coupling", False),
    ("spline coupling", True), ("NSF", True),
])  # fmt: skip
def test_training_goes_on_as_in_normflows(name, context):
    plain = model_of(name, context)
    fast, _ = accelerate(plain)
    x = 0.5 * numbers(64, FEATURES, dtype=torch.float32)
    given = [numbers(64, CONTEXT, dtype=torch.float32, seed=2)] if context else []

    def loss(model):
        return model.forward_kld(x, *given)

    wanted = checks.losses(plain, loss)
    torch.testing.assert_close(checks.losses(fast, loss), wanted, rtol=1e-4, atol=1e-4)
    assert wanted[-1] < wanted[0]


def test_dropout_is_drawn_as_before():
    layer = flows.AutoregressiveRationalQuadraticSpline(
        FEATURES, 2, 9, dropout_probability=0.5, init_identity=False
    )
    plain = normflows.NormalizingFlow(distributions.DiagGaussian(FEATURES), [layer]).train()
    fast, _ = accelerate(plain)
    for run in (lambda model: sample(model)[0], lambda model: log_prob(model, torch.ones(9, FEATURES))[0]):
        torch.manual_seed(1)
        wanted = run(plain)
        torch.manual_seed(1)
        torch.testing.assert_close(run(fast), wanted)


@pytest.mark.parametrize("name", ["NSF", "masked", "block, sigmoid_inv", "circular, bounds"])
def test_copies_files_and_double(name):
    fast, _ = accelerate(checks.stirred(model_of(name), torch.float32))
    checks.check_copies(fast, log_prob, numbers(8, FEATURES, dtype=torch.float32))
    if name != "circular, bounds":  # whose log-determinants normflows adds up in float32
        checks.check_copies(fast, lambda m, z: (m(z),), 0.5 * numbers(8, FEATURES, dtype=torch.float32))


@pytest.mark.parametrize("kind", ["GlowBlock", "Invertible1x1Conv", "InvertibleAffine", "LULinearPermute"])
def test_kept_inverses_follow_their_parameters(kind):
    torch.manual_seed(0)
    plain = getattr(flows, kind)(*((4, 6) if kind == "GlowBlock" else (4,)))
    z = numbers(6, 4, 3, 3, dtype=torch.float32)
    z = z[..., 0, 0] if kind in ("InvertibleAffine", "LULinearPermute") else z
    plain(z)
    fast, _ = accelerate(plain)

    def check():
        for got, wanted in zip((*fast(z), *fast.inverse(z)), (*plain(z), *plain.inverse(z)), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)

    with torch.no_grad():
        for change in (lambda p: p.add_(0.1), lambda p: p.data.mul_(1.1), lambda p: p.data.copy_(p.flip(0))):
            for part in (plain, fast):
                for parameter in part.parameters():
                    change(parameter)
            check()
        if kind == "LULinearPermute":
            plain.linear.eps = fast.linear.eps = 0.25  # which is no parameter
            check()


@pytest.mark.parametrize("tails", ["linear", "circular", None])
@pytest.mark.parametrize("inverse", [False, True])
def test_inputs_at_the_bound_and_narrow_bins_pass(tails, inverse):
    torch.manual_seed(0)
    plain = flows.CoupledRationalQuadraticSpline(FEATURES, 1, 8, tails=tails, tail_bound=3.0)
    with torch.no_grad():
        plain.prqct.transform_net.final_layer.weight.mul_(200)
    fast, _ = accelerate(plain)
    low, high = (0.0, 1.0) if tails is None else (-3.0, 3.0)
    edges = torch.tensor([low, high]).unsqueeze(1).expand(2, FEATURES)
    x = torch.cat([edges, low + (high - low) * torch.rand(2000, FEATURES)])
    y, log_det = (fast.inverse if inverse else fast)(x)
    assert y.isfinite().all() and log_det.isfinite().all() and ((y >= low) & (y <= high)).all()
    torch.testing.assert_close(y[:2], edges, rtol=1e-4, atol=1e-4)


def test_what_is_kept_is_named_with_its_reason():
    def kept(*layers):
        model = normflows.NormalizingFlow(distributions.DiagGaussian(FEATURES), [*layers, masked()])
        _, report = accelerate(model)
        return {part.name.partition(": ")[2]: part.note for part in report.kept}

    assert (
        "preprocessing"
        in kept(*periodic(flows.CircularAutoregressiveRationalQuadraticSpline))[
            "MaskedPiecewiseRationalQuadraticAutoregressive.inverse"
        ]
    )
    maf = "MaskedAffineAutoregressive.inverse"
    assert "activation" in kept(flows.MaskedAffineAutoregressive(FEATURES, 8, activation=torch.sin))[maf]
    assert "normalisation" in kept(flows.MaskedAffineAutoregressive(FEATURES, 8, use_batch_norm=True))[maf]
    assert kept(block("exp", "channel", scale=False))["AffineCoupling"] == "one sum already"
    assert "kernels" in kept(nets.ConvNet2d([2, 3, 3, 4], [3, 5, 3]))["ConvNet2d"]
    assert "three convolutions" in kept(nets.ConvNet2d([2, 3, 3, 4], [3, 1, 3], actnorm=True))["ConvNet2d"]
    assert "half of the channels" in kept(block("exp", "checkerboard"))["AffineCouplingBlock"]
    half = flows.MaskedAffineFlow(torch.full((FEATURES,), 0.5), nets.MLP([5, 5]))
    assert "mask" in kept(half)["MaskedAffineFlow"]
    assert kept(flows.Planar((FEATURES,)))["Planar"] == "fastgen has nothing for it"
    assert "noise" in kept()["DiagGaussian"]
    bounds = MaskedPiecewiseRationalQuadraticAutoregressive(FEATURES, 8, tails="linear", tail_bound=BOUNDS)
    assert "one bound" in kept(bounds)["MaskedPiecewiseRationalQuadraticAutoregressive.inverse"]
    with pytest.raises(TypeError, match="fastgen knows nothing to replace"):
        accelerate(normflows.NormalizingFlow(distributions.DiagGaussian(2), [flows.Planar((2,))]))


def test_a_1x1_convolution_of_no_images():
    plain = flows.Invertible1x1Conv(4, use_lu=True)
    fast, _ = accelerate(plain)
    x = torch.zeros(0, 4, 2, 3)
    for run in ("forward", "inverse"):
        torch.testing.assert_close(getattr(fast, run)(x), getattr(plain, run)(x))


def test_a_network_of_ones_own_and_hooks_keep_the_inverse_of_normflows():
    layer = checks.stirred(flows.MaskedAffineAutoregressive(FEATURES, 8), torch.float64)
    checks.check_own_networks_and_hooks(layer, FEATURES)


def test_convolutions_in_one_op_leave_hooks_gradients_and_other_dtypes_alone():
    plain = nets.ConvNet2d([3, 8, 8, 4], [3, 1, 3], leaky=0.1, init_zeros=False)
    fast, _ = accelerate(normflows.NormalizingFlow(distributions.DiagGaussian(2), [plain]))
    (network,) = (m for m in fast.modules() if isinstance(m, nets.ConvNet2d))
    assert type(network) is not nets.ConvNet2d and type(plain) is nets.ConvNet2d
    x, seen = numbers(2, 3, 5, 5, dtype=torch.float32), []
    network.net[2].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(x))
        assert len(seen) == 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert network(x).dtype == plain(x).dtype == torch.bfloat16
    found, wanted = (
        torch.autograd.grad(net(x).square().sum(), net.net[0].weight) for net in (network, plain)
    )
    torch.testing.assert_close(found, wanted)

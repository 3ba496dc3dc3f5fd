"""Every flow model: density and samples belong together, in every batch and after every way to the disk."""

import math

import pytest
import torch

import fastgen
from fastgen import data, models
from fastgen.backends import usable
from fastgen.models import IAF, MAF, NSF, Flow, Glow, RealNVP, likelihood
from fastgen.nn import Permutation, SplineCoupling
from fastgen.testing import with_threads
from fastgen.training import train

OPS = ("linear", "affine_coupling", "rq_spline", "invertible_linear", "made_inverse")
NATIVE = pytest.mark.skipif(
    not all(usable(op, "native", "cpu") for op in OPS), reason="references add in torch's order"
)

# name: a model of random weights
MODELS = {
    "RealNVP": lambda: RealNVP(5, steps=4, hidden=(32, 16)),
    "RealNVP halves exp": lambda: RealNVP((5,), steps=2, hidden=(16,), mask="halves", scale_map="exp"),
    "RealNVP context": lambda: RealNVP(4, steps=2, hidden=(16,), context=3),
    "RealNVP images": lambda: RealNVP((1, 4, 4), steps=2, hidden=(16,), levels=17),
    "NSF": lambda: NSF(5, steps=3, hidden=16),
    "NSF classes": lambda: NSF((2, 2), steps=2, hidden=16, classes=4),
    "NSF autoregressive": lambda: NSF(5, kind="autoregressive", steps=2, hidden=16),
    "NSF autoregressive context": lambda: NSF(4, kind="autoregressive", steps=2, hidden=16, context=2),
    "MAF": lambda: MAF(5, steps=2, hidden=16),
    "MAF classes": lambda: MAF(4, steps=2, hidden=16, residual=False, order="random", classes=3),
    "IAF context": lambda: IAF(5, steps=2, hidden=16, context=2),
    "Glow": lambda: Glow((3, 4, 4), scales=2, steps=2, hidden=8),
    "Glow classes": lambda: Glow((1, 8, 4), scales=2, steps=2, hidden=8, classes=3, levels=0),
    "Glow sigmoid": lambda: Glow((2, 4, 4), scales=1, steps=2, hidden=8, scale_map="sigmoid", levels=5),
}  # fmt: skip


def randomised(model: Flow, scale: float = 0.1, seed: int = 0) -> Flow:
    """The model in evaluation mode, with weights that are not what it starts with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    for name, buffer in model.named_buffers():
        if name.endswith("initialised"):
            buffer.fill_(True)
    return model.eval()


def made(name: str) -> Flow:
    torch.manual_seed(3)
    return randomised(MODELS[name]())


def conditions(model: Flow, rows: int) -> torch.Tensor | None:
    if model.class_count:
        return torch.arange(rows) % model.class_count
    if not model.context_features:
        return None
    return torch.randn(rows, model.context_features, generator=torch.Generator().manual_seed(rows))


def some(model: Flow, rows: int) -> torch.Tensor:
    """Data that the model can look at; images as real numbers."""
    generator = torch.Generator().manual_seed(5)
    draw = torch.rand if model.dequantization else torch.randn
    return draw(rows, *model.shape, generator=generator, dtype=torch.float64)


# Density and samples


@pytest.mark.parametrize("name", MODELS)
def test_the_density_of_a_sample_is_the_one_it_was_drawn_with(name):
    model = made(name).double()
    context = conditions(model, 6)
    x, log_prob = model.sample_and_log_prob(torch.arange(6), seed=1, context=context)
    torch.testing.assert_close(model.log_prob(x, context), log_prob, rtol=1e-8, atol=1e-8)
    assert x.shape == (6, *model.shape)


@pytest.mark.parametrize("name", MODELS)
def test_the_log_determinant_is_that_of_autograds_jacobian(name):
    model = made(name).double()
    context, x = conditions(model, 2), some(model, 2)
    _, log_det = model.encode(x, context)
    for i in range(2):
        own = None if context is None else context[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda r, own=own: model.encode(r[None], own)[0][0], x[i]
        )
        wanted = jacobian.reshape(model.dimensions, -1).slogdet()[1]
        torch.testing.assert_close(log_det[i], wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RealNVP(2, steps=4, hidden=(16,)),
        lambda: NSF(2, steps=3, hidden=16),
        lambda: NSF(2, kind="autoregressive", steps=2, hidden=16),
        lambda: NSF(2, steps=2, hidden=16, classes=2),
        lambda: MAF(2, steps=2, hidden=16),
        lambda: IAF(2, steps=2, hidden=16),
    ],
    ids=["RealNVP", "NSF", "NSF autoregressive", "NSF classes", "MAF", "IAF"],
)
def test_densities_in_the_plane_integrate_to_one(make):
    torch.manual_seed(0)
    model = randomised(make(), 0.1).double()
    side = torch.linspace(-9, 9, 601, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    context = 1 if model.class_count else None
    with torch.no_grad():
        density = model.log_prob(points, context).exp()
    assert abs(density.sum().item() * (side[1] - side[0]).item() ** 2 - 1) < 2e-3


def test_an_images_density_integrates_to_one_over_the_unit_square():
    model = randomised(RealNVP((1, 1, 2), steps=3, hidden=(16,), levels=4)).double()
    # Beyond the logit's ends lies what no image has: with small weights it holds little, and never gains.
    side = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    with torch.no_grad():
        inside = model.log_prob(torch.cartesian_prod(side, side).view(-1, 1, 1, 2)).exp().mean()
    x, _ = model.sample_and_log_prob(torch.arange(20_000), seed=0)
    share = ((x >= 0) & (x <= 1)).flatten(1).all(1).double().mean()
    assert abs(inside.item() - share.item()) < 5 * math.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 6, 48])
@pytest.mark.parametrize("family", ["RealNVP", "NSF", "Glow"])
def test_decoding_undoes_encoding_within_a_small_multiple_of_the_rounding(family, steps, dtype):
    make = {
        "RealNVP": lambda: RealNVP(6, steps=steps, hidden=(16,)),
        "NSF": lambda: NSF(6, steps=steps, hidden=16, bound=6.0),
        "Glow": lambda: Glow((1, 4, 4), scales=1, steps=steps, hidden=8, levels=0),
    }
    torch.manual_seed(1)
    model = randomised(make[family](), 0.02 if steps == 48 else 0.05).to(dtype)
    x = some(model, 64).to(dtype)
    with torch.no_grad():
        z, log_det = model.encode(x)
        back, back_log_det = model.decode(z)
    # Rounding errors of the layers add up; what a layer stretches, its inverse's error is stretched by.
    allowed = ROUND_TRIP[dtype] * (1 + steps)
    assert (back - x).abs().max().item() < allowed
    assert (log_det + back_log_det).abs().max().item() < 8 * allowed


# Error allowed for each step, about 8 times the rounding of numbers of size 4.
ROUND_TRIP = {torch.float32: 4e-6, torch.float64: 1e-14, torch.bfloat16: 0.25}


@NATIVE
@pytest.mark.parametrize("name", MODELS)
def test_a_sample_has_the_same_bits_alone_in_every_batch_and_with_any_threads(name):
    model = made(name)
    context = conditions(model, 257)

    def drawn(first, last):
        ids = torch.arange(first, last)
        own = None if context is None else context[first:last]
        with torch.no_grad():
            return model.sample_and_log_prob(ids, seed=9, context=own) + (
                model.sample(ids, seed=9, context=own),
            )

    with with_threads(1):
        whole = drawn(0, 257)
    for count in (1, 2):
        with with_threads(count):
            for first, last in ((0, 257), (0, 1), (256, 257), (100, 117)):
                part = drawn(first, last)
                assert all(torch.equal(p, w[first:last]) for p, w in zip(part, whole, strict=True))


@NATIVE
@pytest.mark.parametrize("name", MODELS)
def test_a_log_density_has_the_same_bits_alone_and_in_a_batch(name):
    model = made(name)
    context, x = conditions(model, 33), some(model, 33).float()
    with torch.no_grad():
        whole = model.log_prob(x, context)
        for i in (0, 7, 32):
            own = None if context is None else context[i : i + 1]
            assert torch.equal(model.log_prob(x[i : i + 1], own), whole[i : i + 1])


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_the_loss_agree_with_finite_differences(name):
    model = made(name).double()
    context, x = conditions(model, 2), some(model, 2).requires_grad_()
    given = x if context is None else (x, context)
    along = {p: torch.randn_like(p) for p in [x, *model.parameters()]}
    model.loss(given).backward()
    wanted = sum((p.grad * v).sum() for p, v in along.items())

    def moved(step):
        with torch.no_grad():
            for p, v in along.items():
                p.add_(step * v)
            return model.loss(given)

    step = 1e-6
    change = moved(step) - moved(-2 * step)
    torch.testing.assert_close(change / (2 * step), wanted, rtol=1e-6, atol=1e-6)


# What the arguments say


@pytest.mark.parametrize("name", ["RealNVP", "NSF autoregressive", "Glow classes"])
def test_temperature(name):
    model = made(name)
    ids, context = torch.arange(5), conditions(model, 1)
    context = None if context is None else context[0]
    cold = model.sample(ids, seed=1, context=context, temperature=0)
    assert torch.equal(cold, cold[:1].expand_as(cold))
    origin = model.decode(torch.zeros(1, model.dimensions), context)[0]
    assert torch.equal(cold[:1], origin.detach())
    usual = model.sample(ids, seed=1, context=context)
    assert torch.equal(usual, model.sample(ids, seed=1, context=context, temperature=1.0))
    z = model.latent(ids, seed=1)
    assert torch.equal(model.latent(ids, seed=1, temperature=0.5), 0.5 * z)


@pytest.mark.parametrize("name", MODELS)
def test_interpolation_begins_and_ends_where_it_should(name):
    model = made(name)
    context, (a, b) = conditions(model, 3), some(model, 6).float().chunk(2)
    way = model.interpolate(a, b, 5, context)
    assert way.shape == (3, 5, *model.shape)
    for point, wanted in ((way[:, 0], a), (way[:, -1], b)):
        if model.dequantization is None:
            torch.testing.assert_close(point, wanted, rtol=1e-3, atol=1e-3)
        else:  # a value at the edge of a level may fall to either side
            near = (point.float() - model.dequantization.quantize(wanted).float()).abs()
            assert near.max() <= 256 / (model.dequantization.levels - 1)
    middle = model.decode(torch.lerp(model.encode(a, context)[0], model.encode(b, context)[0], 0.5), context)
    if model.dequantization is None:
        torch.testing.assert_close(way[:, 2], middle[0].detach(), rtol=1e-4, atol=1e-4)


def test_one_condition_goes_for_all_samples():
    model, ids = made("NSF classes"), torch.arange(4)
    one = model.sample(ids, seed=0, context=2)
    assert torch.equal(one, model.sample(ids, seed=0, context=torch.full((4,), 2)))
    assert not torch.equal(one, model.sample(ids, seed=0, context=1))
    model = made("RealNVP context")
    given = [0.1, 0.2, 0.3]
    assert torch.equal(
        model.sample(ids, seed=0, context=given), model.sample(ids, seed=0, context=torch.tensor([given] * 4))
    )


def test_grey_images_get_noise_and_the_volume_of_a_level():
    model = made("RealNVP images")
    x = (torch.arange(32).view(2, 1, 4, 4) % 17 * 255 / 16).round().to(torch.uint8)
    torch.manual_seed(4)
    came = model.log_prob(x)
    torch.manual_seed(4)
    y = model.dequantization.place(x.flatten(1), torch.rand(2, 16)).view(x.shape)
    torch.testing.assert_close(came, model.log_prob(y) - 16 * math.log(17))
    found = likelihood(model, x, seed=2, draws=3)
    again = likelihood(model, x, seed=2, draws=3, batch_size=1)
    assert found == pytest.approx(again)
    assert found.bits_per_dimension == pytest.approx(-found.nats / 16 / math.log(2))
    assert likelihood(model, x, seed=3).nats != likelihood(model, x, seed=2).nats


def test_likelihood_of_real_numbers_is_the_mean_log_density():
    model = made("NSF classes")
    x, context = some(model, 9).float(), conditions(model, 9)
    found = likelihood(model, x, context, batch_size=4)
    wanted = model.log_prob(x, context).detach().double()
    assert found.nats == pytest.approx(wanted.mean().item())
    assert found.error == pytest.approx(wanted.std().item() / 3)


# Training


def test_actnorm_of_every_layer_starts_from_the_first_batch():
    torch.manual_seed(0)
    x = 5 + 3 * torch.randn(500, 6)
    for model in (RealNVP(6), NSF(6), Glow((1, 2, 3 * 2), scales=1, steps=3, hidden=8, levels=0)):
        points = x if model.shape == (6,) else (5 + 3 * torch.randn(500, *model.shape))
        model.initialise(points)
        z, _ = model.eval().encode(points)
        assert z.mean().abs() < 0.05 and (z.std() - 1).abs() < 0.05


def test_couplings_of_two_features_take_turns():
    flow = NSF(2, steps=4, hidden=8)
    axes, moved = [0, 1], []
    for layer in flow.flow.layers:
        if isinstance(layer, Permutation):
            axes = [axes[i] for i in layer.order.tolist()]
        elif isinstance(layer, SplineCoupling):
            moved.append(axes[1])
    assert moved == [0, 1, 0, 1]


def test_a_flow_learns_two_moons():
    x = data.toy("moons", 2000, seed=1)
    held_out = data.toy("moons", 1000, seed=2)
    deviation, mean = x.std(0), x.mean(0)
    gaussian = torch.distributions.Normal(mean, deviation).log_prob(held_out).sum(1).mean().item()
    torch.manual_seed(0)
    model = NSF(2, steps=2, hidden=24)
    train(model, x, steps=150, lr=5e-3, batch_size=256, validation=0.0, progress=False)
    assert likelihood(model, held_out).nats > gaussian + 0.5


def test_a_class_conditional_flow_learns_which_class_is_where():
    labels = torch.arange(600) % 2
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)) + 4 * labels[:, None]
    torch.manual_seed(0)
    model = RealNVP(2, steps=2, hidden=(16,), classes=2)
    train(model, (x, labels), steps=200, lr=1e-2, validation=0.0, progress=False)
    for label in (0, 1):
        mean = model.sample(torch.arange(500), seed=1, context=label).mean(0)
        assert (mean - 4 * label).abs().max() < 0.5


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_it_samples_the_same(name, tmp_path):
    model = made(name)
    model.save(tmp_path / "flow")
    loaded = models.load(tmp_path / "flow")
    assert loaded.fingerprint() == model.fingerprint()
    context = conditions(model, 3)
    wanted = model.sample(torch.arange(3), seed=4, context=context)
    assert torch.equal(loaded.sample(torch.arange(3), seed=4, context=context), wanted)


@pytest.mark.parametrize("name", ["NSF", "Glow classes", "RealNVP images"])
def test_a_stopped_training_goes_on_to_the_same_weights(name, tmp_path):
    def run(out, *lengths):
        for steps in lengths:
            torch.manual_seed(8)
            model = MODELS[name]()
            x = some(model, 40).float()
            x = (x * 255).to(torch.uint8) if model.dequantization else x
            context = conditions(model, 40)
            batch = x if context is None else (x, context)
            train(model, batch, steps=steps, batch_size=16, ema=0.9, out=out, progress=False)
        return model.state_dict()

    whole, parts = run(tmp_path / "whole", 7), run(tmp_path / "parts", 3, 7)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_samples_of_images_go_to_the_disk_as_pictures(tmp_path):
    model = made("Glow")
    out = fastgen.sample(model, 5, seed=1, out=tmp_path / "out", progress=False, temperature=0.7)
    stored = fastgen.sampling.load(out)
    assert stored.dtype == torch.uint8 and stored.shape == (5, 3, 4, 4)
    assert torch.equal(
        torch.as_tensor(stored[3]), model.sample(torch.tensor([3]), seed=1, temperature=0.7)[0]
    )


# Bad input


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: made("RealNVP").log_prob(torch.zeros(2, 4)), r"x has shape \(2, 4\), wanted \(N, 5\)"),
        (lambda: made("RealNVP").log_prob(torch.zeros(2, 5), torch.zeros(2, 1)), "made without context"),
        (lambda: made("RealNVP context").log_prob(torch.zeros(2, 4)), r"context is None, wanted \(2, 3\)"),
        (
            lambda: made("RealNVP context").log_prob(torch.zeros(2, 4), torch.zeros(2, 2)),
            r"context has shape \(2, 2\), wanted \(2, 3\)",
        ),
        (lambda: made("NSF classes").sample(torch.arange(2), seed=0), "wanted .* classes 0 to 3"),
        (lambda: made("NSF classes").sample(torch.arange(2), seed=0, context=4), "from 4 to 4"),
        (lambda: made("NSF classes").sample(torch.arange(2), seed=0, context=0.5), "torch.float32"),
        (lambda: made("NSF").sample(torch.arange(2), seed=0, temperature=-1), "temperature is -1"),
        (lambda: made("NSF").sample(torch.arange(2), seed=0, temperature=math.nan), "temperature is nan"),
        (lambda: made("NSF").interpolate(torch.zeros(1, 5), torch.zeros(1, 5), 1), "steps is 1"),
        (lambda: made("NSF").interpolate(torch.zeros(1, 5), torch.zeros(2, 5), 3), "wanted that of a"),
        (
            lambda: made("NSF").interpolate(torch.zeros(5), torch.zeros(5), 3),
            r"a has shape \(5,\), wanted \(N, 5\)",
        ),
        (
            lambda: made("NSF").interpolate(torch.zeros(1, 5), torch.zeros(1, 4), 3),
            r"b has shape \(1, 4\), wanted \(N, 5\)",
        ),
        (lambda: made("NSF").decode(torch.zeros(2, 6)), r"z has shape \(2, 6\), wanted \(N, 5\)"),
        (lambda: made("Glow").decode(torch.zeros(48)), r"z has shape \(48,\), wanted \(N, 48\)"),
        (
            lambda: made("RealNVP images").log_prob(torch.full((2, 1, 4, 4), 100.5)),
            "x ranges from 100.5 to 100.5, wanted real numbers from 0 to 1",
        ),
        (lambda: RealNVP(2, hidden=0), "hidden is 0, wanted at least 1"),
        (lambda: RealNVP(1), "shape is .*, wanted at least 2 numbers"),
        (lambda: RealNVP(0), "shape is 0, wanted at least 1"),
        (lambda: RealNVP(4, context=2, classes=2), "wanted at most one of them"),
        (lambda: RealNVP(4, mask="spiral"), "mask is 'spiral', wanted one of alternating, halves"),
        (lambda: RealNVP(4, levels=1), "levels is 1, wanted an int from 2 to 256"),
        (lambda: NSF(4, kind="both"), "kind is 'both', wanted one of coupling, autoregressive"),
        (lambda: NSF(4, bins=1), "bins is 1, wanted at least 2"),
        (lambda: NSF(4, bound=0.0), "bound is 0.0, wanted a number > 0"),
        (lambda: RealNVP(4, scale_map="tan"), "scale_map is 'tan', wanted one of exp, tanh"),
        (lambda: MAF(4, clamp=-1), "clamp is -1.0, wanted a number > 0"),
        (lambda: Glow((1, 4, 4), scales=1, scale_map="tan"), "scale_map is 'tan', wanted one of exp, tanh"),
        (lambda: Glow((1, 6, 6), scales=2), "height and width multiples of 4 for 2 scales"),
        (lambda: Glow((16,)), "wanted .channels, height, width."),
        (lambda: likelihood(made("NSF"), torch.zeros(1, 5)), "x has 1 data points"),
    ],
)
def test_bad_input_is_explained(run, words):
    with pytest.raises(ValueError, match=words):
        run()


@pytest.mark.parametrize("hidden", ["16", 16.0, None, True, [16, "a"]])
def test_hidden_of_a_wrong_type_is_named(hidden):
    with pytest.raises(TypeError, match=r"hidden is .*, wanted an int"):
        RealNVP(2, hidden=hidden)


def test_hidden_as_an_int_is_two_layers():
    assert RealNVP(2, hidden=16).config == RealNVP(2, hidden=(16, 16)).config


def test_nan_in_the_first_batch_does_not_stay():
    x = torch.randn(32, 2)
    x[3, 1] = math.nan
    for model in (RealNVP(2, hidden=8), NSF(2, hidden=8), MAF(2, hidden=8)):
        with pytest.raises(ValueError, match="x has 1 NaN or infinite numbers of 64"):
            model.initialise(x)
        model.initialise(x[4:])
        assert bool(model.eval().log_prob(x[4:]).isfinite().all())


class Reversed(Flow):
    """No parameters at all."""

    def __init__(self, shape, **options):
        super().__init__(shape, **options)
        self.flow = Permutation("reverse", self.dimensions)


class Forgotten(Flow):
    """Its constructor sets no layer."""

    def __init__(self, shape):
        super().__init__(shape)


def test_a_flow_without_parameters(tmp_path):
    model, x = Reversed(3, context=2), torch.tensor([[1.0, 2, 3]])
    z, _ = model.encode(x, [0.0, 1.0])
    assert z.tolist() == [[3, 2, 1]] and z.dtype == torch.get_default_dtype()
    drawn = model.sample(torch.arange(4), seed=1, context=[0.0, 1.0])
    assert torch.equal(
        models.load(model.save(tmp_path)).sample(torch.arange(4), seed=1, context=[0, 1]), drawn
    )


def test_a_flow_that_sets_no_layer_is_told_so():
    for run in (lambda m: m.log_prob(torch.zeros(2, 3)), lambda m: m.sample(torch.arange(2), seed=0)):
        with pytest.raises(
            AttributeError, match=r"Forgotten has no self.flow, wanted its constructor to set"
        ):
            run(Forgotten(3))


@pytest.mark.parametrize("make", [
    lambda: RealNVP(4, steps=2, hidden=(8,)),
    lambda: NSF(4, steps=2, hidden=8),
    lambda: NSF(4, kind="autoregressive", steps=2, hidden=8),
    lambda: MAF(4, steps=2, hidden=8),
    lambda: NSF(4, steps=2, hidden=8, constant_memory=True),
])  # fmt: skip
def test_training_under_autocast(make):
    flow, x = make().train(), torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    wanted = flow.loss(x)
    with torch.autocast("cpu", torch.bfloat16):
        loss = flow.loss(x)
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in flow.parameters() if p.grad is not None)


@pytest.mark.parametrize("options, one, each", [
    ({"classes": 3}, torch.tensor(2), [2] * 5),
    ({"context": 5}, torch.arange(5.0), torch.arange(5.0).expand(5, 5)),
], ids=["classes", "context"])  # fmt: skip
def test_likelihood_takes_conditions_as_log_prob_does(options, one, each):
    flow, x = NSF(2, steps=1, hidden=8, **options), torch.linspace(-1, 1, 10).view(5, 2)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    wanted = flow.eval().log_prob(x, one).double().mean().item()
    assert likelihood(flow, x, one, batch_size=2).nats == pytest.approx(wanted)
    assert likelihood(flow, x, each, batch_size=2).nats == pytest.approx(wanted)

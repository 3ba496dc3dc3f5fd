"""What the arguments of flows say, and what they refuse."""

import math

import pytest
import torch
from flow_models import MODELS, conditions, made, some

from fastgen.models import MAF, NSF, Glow, RealNVP, likelihood

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
        (
            lambda: Glow((1, 4, 4), scales=1, conditional_prior=True),
            "without classes and context, wanted one",
        ),
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


@pytest.mark.parametrize("context", ["seven", [1, "a"], [[1], [1, 2]], {}, [None]])
def test_a_context_that_holds_no_numbers_is_named(context):
    with pytest.raises(TypeError, match=r"context is .*, wanted \(2,\) classes 0 to 3"):
        made("NSF classes").sample(torch.arange(2), seed=0, context=context)


def test_a_batch_of_other_members_and_complex_numbers_are_refused():
    model = RealNVP(2, steps=1, hidden=4)
    x = torch.randn(5, 2)
    torch.testing.assert_close(model.loss([x]), model.loss(x))
    with pytest.raises(ValueError, match=r"batch has 3 members, wanted x, or \(x, context\)"):
        model.loss([x, x, x])
    with pytest.raises(TypeError, match=r"x is torch\.complex64, wanted real numbers"):
        model.log_prob(torch.complex(x, x))

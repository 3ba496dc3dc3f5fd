"""Every flow model: density and samples belong together, in every batch and after every way to the disk."""

import math

import pytest
import torch
from flow_models import MODELS, NATIVE, conditions, made, randomised, some

from fastgen import models
from fastgen.models import IAF, MAF, NSF, Flow, Glow, RealNVP
from fastgen.nn import Permutation
from fastgen.testing import with_threads

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


@pytest.mark.parametrize("name", ["NSF classes", "IAF context", "Glow", "Glow classes"])
def test_in_evaluation_each_way_is_one_graph(name):
    model, context = made(name), conditions(made(name), 3)
    x, ids = some(model, 3).float(), torch.arange(3)
    for run, given in (
        (lambda x: model.log_prob(x, context), x),
        (lambda ids: model.sample_and_log_prob(ids, seed=1, context=context), ids),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(given), run(given))

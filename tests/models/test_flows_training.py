"""Flows learn, stop and go on, and come back from the disk."""

import math

import pytest
import torch
from flow_models import MODELS, conditions, made, some

import fastgen
from fastgen import data, models
from fastgen.models import MAF, NSF, Glow, RealNVP, likelihood
from fastgen.nn import Permutation, SplineCoupling
from fastgen.training import train

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


def test_nan_in_the_first_batch_does_not_stay():
    x = torch.randn(32, 2)
    x[3, 1] = math.nan
    for model in (RealNVP(2, hidden=8), NSF(2, hidden=8), MAF(2, hidden=8)):
        with pytest.raises(ValueError, match="x has 1 NaN or infinite numbers of 64"):
            model.initialise(x)
        model.initialise(x[4:])
        assert bool(model.eval().log_prob(x[4:]).isfinite().all())


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


def test_the_prior_of_glow_learns_the_mean_of_each_class():
    """Nothing else is trained."""
    labels = torch.arange(400) % 2
    x = (
        torch.randn(400, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        + 3 * labels[:, None, None, None]
    )
    torch.manual_seed(0)
    model = Glow((1, 2, 2), scales=1, steps=1, hidden=4, classes=2, conditional_prior=True, levels=0)
    model.initialise(x, labels)
    prior = model.flow.layers[-1]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is own for own in prior.parameters()))
    train(model, (x, labels), steps=300, lr=2e-2, validation=0.0, progress=False)
    for label in (0, 1):
        drawn = model.sample(torch.arange(1000), seed=1, context=label)
        assert (drawn.mean((0, 1)) - 3 * label).abs().max() < 0.3

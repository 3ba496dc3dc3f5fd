"""Training in constant memory: the ordinary gradients, in memory that does not grow with the layers."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from fastgen import nn
from fastgen.bench.peak_memory import SUPPORTED
from fastgen.models import NSF, Glow, RealNVP
from fastgen.nn import FlowSequence

MODELS = {
    "Glow": partial(Glow, (1, 8, 8), scales=2, steps=3, hidden=8, levels=0),
    "RealNVP": partial(RealNVP, 6, steps=4, hidden=(16,), classes=3),
    "NSF": partial(NSF, 6, steps=3, hidden=16),
    "NSF autoregressive": partial(NSF, 3, kind="autoregressive", steps=2, hidden=16, context=2),
}


def gradients(model, x, context):
    model.zero_grad()
    x = x.clone().requires_grad_()
    context = context.clone().requires_grad_() if context is not None and model.class_count == 0 else context
    (model.log_prob(x, context) * torch.arange(1, len(x) + 1)).sum().backward()
    found = [x.grad, *(p.grad for p in model.parameters())]
    return found if context is None or model.class_count else [*found, context.grad]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_ordinary_ones(name):
    torch.manual_seed(0)
    plain, reversible = MODELS[name]().double(), MODELS[name](constant_memory=True).double()
    x = torch.randn(5, *plain.shape, dtype=torch.float64)
    context = torch.randn(5, plain.context_features, dtype=torch.float64)
    context = torch.arange(5) % 3 if plain.class_count else context if plain.context_features else None
    plain.initialise(x, context)
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.05 * torch.randn_like(p))
    reversible.load_state_dict(plain.state_dict())
    for a, b in zip(gradients(plain, x, context), gradients(reversible, x, context), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def pair(**arguments):
    """The same couplings twice, the second in constant memory."""
    network = partial(nn.ResidualMLP, hidden=16, **arguments)
    masks = [[True, False] * 2, [False, True] * 2] * 2
    torch.manual_seed(0)
    layers = [nn.ActNorm(4), *(nn.AffineCoupling(4, network, mask=mask) for mask in masks)]
    plain = FlowSequence(layers).double()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.1 * torch.randn_like(p))
    reversible = FlowSequence([*plain.layers], constant_memory=True)
    return plain, reversible, torch.randn(8, 4, dtype=torch.float64)


def of_parameters(sequence, x, seed=3):
    torch.manual_seed(seed)
    z, log_det = sequence(x)
    sequence.zero_grad()
    (z.square().sum() - log_det.sum()).backward()
    return [p.grad.clone() for p in sequence.parameters()], torch.rand(1)


def test_dropout_drops_the_same_units_again():
    plain, reversible, x = pair(dropout=0.5)
    wanted, next_number = of_parameters(plain, x)
    found, next_found = of_parameters(reversible, x)
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert torch.equal(next_number, next_found)  # the backward pass leaves the generator alone
    assert not torch.allclose(of_parameters(plain, x, seed=4)[0][-1], wanted[-1])


def test_a_layer_that_starts_from_data_starts_once():
    _, reversible, x = pair()
    reversible.train()(3 * x + 7)
    shift = reversible.layers[0].shift.detach().clone()
    of_parameters(reversible, x)
    assert torch.equal(reversible.layers[0].shift, shift)
    torch.testing.assert_close(shift, -(3 * x + 7).mean(0))


def test_parameters_that_need_no_gradient_get_none():
    _, reversible, x = pair()
    frozen = next(iter(reversible.layers[1].parameters()))
    frozen.requires_grad_(False)
    z, log_det = reversible(x)
    (z.sum() + log_det.sum()).backward()
    assert frozen.grad is None and reversible.layers[2].network.first.weight.grad is not None


def test_gradients_of_gradients_are_refused_with_a_sentence():
    _, reversible, x = pair()
    z, _ = reversible(x.requires_grad_())
    with pytest.raises(RuntimeError, match=r"gradients of gradients .* constant_memory=False"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


def test_parameters_that_changed_in_between_are_noticed():
    _, reversible, x = pair()
    z, _ = reversible(x)
    with torch.no_grad():
        reversible.layers[1].network.last.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed between the forward and the backward pass"):
        z.sum().backward()


PEAK = """
import torch
from fastgen.bench.peak_memory import peak_mib
from fastgen.models import RealNVP
def peak(steps, constant_memory):
    model = RealNVP(32, steps=steps, hidden=(128, 128), constant_memory=constant_memory)
    x = torch.randn(2048, 32)
    def step():
        model.loss(x).backward()
        model.zero_grad()
    return peak_mib(step)
torch.set_num_threads(1)
print(*(peak(steps, kind) for kind in (False, True) for steps in (4, 24)))
"""


@pytest.mark.skipif(not SUPPORTED, reason="peak memory is measured on Linux alone")
def test_the_peak_of_memory_does_not_grow_with_the_layers():
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        env={"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    plain, plain_deep, constant, constant_deep = map(float, done.stdout.split())
    assert plain_deep > 4 * plain  # six times as many layers
    assert constant_deep < 1.3 * constant + 4 and constant_deep < plain_deep / 4

"""Normalizing flows: densities in the plane, taken apart coupling by coupling, and a flow of digits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastgen import data
from fastgen.demo.settings import Settings
from fastgen.models import NSF, Flow, Likelihood, RealNVP, likelihood
from fastgen.models.flow import normal_log_prob
from fastgen.nn import FlowSequence, Permutation
from fastgen.nn.coupling import Coupling
from fastgen.testing import with_threads
from fastgen.training import train
from fastgen.training.recipes import flow_of_digits

BOUND = 3.0  # half the side of the square that is looked at
PAIRS = ((8, 9), (6, 0), (3, 5), (1, 4), (2, 7))  # digits to walk between


@dataclass(frozen=True)
class Plane:
    """A flow in the plane.

    Attributes:
        family: its name.
        data: what it was trained on, a name of `fastgen.data.toy`.
        stages: (couplings + 1, side, side), densities: of the noise, after one coupling, ..., of the data.
        points: (side, side), how many of the training points lie in each pixel.
        held_out: the likelihood of points that it was not trained on.
    """

    family: str
    data: str
    stages: Tensor
    points: Tensor
    held_out: Likelihood


@dataclass(frozen=True)
class Flows:
    """All that the page shows of flows.

    Attributes:
        planes: densities in the plane.
        digits: the flow of 8 x 8 digits.
        held_out: the likelihood of digits that it was not trained on.
        samples: (rows, columns, 8, 8) uint8, ink from 0 to 255.
        walks: (pairs, steps, 8, 8) uint8, between two digits of the test set.
    """

    planes: list[Plane]
    digits: Flow
    held_out: Likelihood
    samples: Tensor
    walks: Tensor


def make(settings: Settings, directory: Path) -> Flows:
    """Train the flows, or take up trainings that were stopped, and look at them."""
    with with_threads(1):  # the networks are too small to be shared
        planes = [
            _plane(partial(RealNVP, 2, steps=10, hidden=(64, 64)), "moons", settings, directory),
            _plane(partial(NSF, 2, steps=4, hidden=64, bins=12), "spirals", settings, directory),
        ]
        images = data.digits()
        digits = flow_of_digits(images.train, steps=settings.flow_steps, out=directory / "digits")
    return Flows(
        planes,
        digits,
        likelihood(digits, images.test, seed=settings.seed, draws=settings.flow_draws),
        _samples(digits, settings),
        _walks(digits, images),
    )


def _plane(build: Callable[[], Flow], name: str, settings: Settings, directory: Path) -> Plane:
    points, held_out = data.toy(name, settings.plane_points), data.toy(name, 10_000, seed=1)
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        flow = build()
        flow.initialise(points)
    train(
        flow, points, steps=settings.plane_steps, batch_size=512, lr=2e-3, ema=0.99, validation=0.0,
        seed=settings.seed, out=directory / name,
    )  # fmt: skip
    side = settings.plane_side
    stages, pixels = _stages(flow.eval(), side), _pixels(points, side)
    return Plane(type(flow).__name__, name, stages, pixels, likelihood(flow, held_out))


@torch.no_grad()
def _stages(flow: Flow, side: int) -> Tensor:
    """The density of the noise once it went through none, one, ..., all of the couplings."""
    assert isinstance(flow.flow, FlowSequence)
    layers = list(flow.flow.layers)
    cuts = [0, *(place + 1 for place, layer in enumerate(layers) if isinstance(layer, Coupling))]
    return torch.stack([_density(layers, cut, _grid(side)).view(side, side) for cut in reversed(cuts)])


def _density(layers: list, cut: int, points: Tensor) -> Tensor:
    """The density, at points (N, 2), of what the layers before the cut would make data of."""
    for layer in layers[:cut]:
        if isinstance(layer, Permutation):  # seen with the data's axes
            points, _ = layer(points)
    z, log_det = FlowSequence(layers[cut:])(points)
    return (normal_log_prob(z) + log_det).exp()


def _grid(side: int) -> Tensor:
    """The middles of the pixels, (side^2, 2), the first row on top."""
    along = BOUND * ((2 * torch.arange(side) + 1) / side - 1)
    return torch.stack([along.repeat(side), -along.repeat_interleave(side)], 1)


def _pixels(points: Tensor, side: int) -> Tensor:
    """How many points lie in each pixel of the same grid."""
    column, row = ((points * torch.tensor([1.0, -1.0]) / BOUND + 1) / 2 * side).floor().long().unbind(1)
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    return torch.bincount((row * side + column)[inside], minlength=side * side).view(side, side)


def _samples(flow: Flow, settings: Settings) -> Tensor:
    rows, columns = settings.flow_samples
    ids = torch.arange(rows * columns)
    return flow.sample(ids, seed=settings.seed, temperature=0.8).view(rows, columns, 8, 8)


def _walks(flow: Flow, images: data.Images) -> Tensor:
    first = {digit: images.test[images.test_labels == digit][0] for digit in range(10)}
    start, end = (torch.stack([first[pair[side]] for pair in PAIRS]) for side in (0, 1))
    return flow.interpolate(start, end, 12)[:, :, 0]

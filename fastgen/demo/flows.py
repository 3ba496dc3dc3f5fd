"""Normalizing flows: densities in the plane, taken apart coupling by coupling, and a flow of digits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen import data, zoo
from fastgen.demo.settings import Settings
from fastgen.models import Flow, Likelihood, likelihood, load
from fastgen.models.flow import normal_log_prob
from fastgen.nn import FlowSequence, Permutation
from fastgen.nn.coupling import Coupling
from fastgen.testing import with_threads
from fastgen.training.flows import DATASETS

BOUND = 3.0  # half the side of the square that is looked at
PLANES, DIGITS = ("realnvp-pinwheel", "nsf-checkerboard"), "nsf-digits"  # of the zoo
PAIRS = ((8, 9), (6, 0), (3, 5), (1, 4), (2, 7))  # digits to walk between


@dataclass(frozen=True)
class Plane:
    """A flow in the plane.

    Attributes:
        name: in the zoo, of the family and of what it was trained on.
        family: its class.
        stages: (couplings + 1, side, side), densities: of the noise, after one coupling, ..., of the data.
        points: (side, side), how many of the training points lie in each pixel.
        held_out: the likelihood of points that it was not trained on.
    """

    name: str
    family: str
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


def make(settings: Settings) -> Flows:
    """Take the flows from the zoo, and look at them."""
    with with_threads(1):  # the networks are too small to be shared
        planes = [_plane(name, settings) for name in PLANES]
    images, digits = data.digits(), _flow(DIGITS)
    return Flows(
        planes,
        digits,
        likelihood(digits, images.test, seed=settings.seed, draws=settings.flow_draws),
        _samples(digits, settings),
        _walks(digits, images),
    )


def _flow(name: str) -> Flow:
    flow = load(f"{zoo.PREFIX}{name}")
    assert isinstance(flow, Flow)
    return flow


def _plane(name: str, settings: Settings) -> Plane:
    flow, dataset = _flow(name), DATASETS[name.split("-")[1]]()
    stages, pixels = _stages(flow, settings.plane_side), _pixels(dataset.train, settings.plane_side)
    return Plane(name, type(flow).__name__, stages, pixels, likelihood(flow, dataset.test))


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

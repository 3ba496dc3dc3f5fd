"""A Boltzmann machine of handwritten digits: trained, judged, and sampled in chains."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen import data
from fastgen.demo.settings import Settings
from fastgen.models import RBM
from fastgen.models.estimates import Estimate
from fastgen.training.recipes import rbm_of_digits


@dataclass(frozen=True)
class Digits:
    """The machine and what it made.

    Attributes:
        model: the trained machine.
        test: (N, 1, 28, 28) bool, the test images.
        log_partition: log Z by annealed importance sampling.
        log_likelihood: of the test images, nats an image, with the standard error over images and of log Z.
        chains: (times, chains, 28, 28) float32, the probabilities that the pixels were drawn from.
        known: (28, 28) bool, which pixels inpainting was given.
        given: (images, 28, 28) bool, the images that it was given.
        inpainted: (images, fillings, 28, 28) float32, probabilities.
    """

    model: RBM
    test: Tensor
    log_partition: Estimate
    log_likelihood: Estimate
    chains: Tensor
    known: Tensor
    given: Tensor
    inpainted: Tensor


def make(settings: Settings, directory: Path) -> Digits:
    """Train the machine, or take up a training that was stopped, then sample it."""
    images = data.mnist5k()
    model = rbm_of_digits(
        images.train > 127, hidden=settings.hidden, epochs=settings.epochs, seed=settings.seed, out=directory
    )
    test = images.test > 127
    log_partition = model.log_partition(
        seed=settings.seed, chains=settings.annealing_chains, steps=settings.annealing_steps
    )
    log_likelihood = _mean(model.log_likelihood(test, log_partition.value), log_partition.error)
    chains = _chains(model, settings)
    return Digits(model, test, log_partition, log_likelihood, chains, *_inpaint(model, test, settings))


def _mean(values: Tensor, common_error: Tensor) -> Estimate:
    """The mean, with the errors over values and of what they have in common added as independent."""
    own = values.std() / len(values) ** 0.5
    return Estimate(values.mean(), (own**2 + common_error**2).sqrt())


def _chains(model: RBM, settings: Settings) -> Tensor:
    """The same chains, looked at after each number of steps; each look goes on where the last one ended."""
    ids = torch.arange(settings.digit_chains)
    state = model.sample(ids, seed=settings.seed, steps=0)
    looks, done = [state.float()], 0
    for steps in settings.chain_steps[1:]:
        go_on: dict[str, Any] = {
            "seed": settings.seed,
            "start": state,
            "first_step": done,
            "steps": steps - done,
        }
        looks.append(model.sample(ids, probabilities=True, **go_on))
        state, done = model.sample(ids, **go_on), steps
    return torch.stack(looks)[:, :, 0]


def _inpaint(model: RBM, test: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Two fillings each of one test image of each digit, of which the left half is known."""
    known = torch.zeros(1, 28, 28, dtype=torch.bool)
    known[..., :14] = True
    given = test[:: len(test) // 10][: settings.digit_chains]
    fillings = model.inpaint(
        given.repeat_interleave(2, 0),
        known,
        seed=settings.seed,
        steps=max(settings.chain_steps[-1] // 3, 1),
        probabilities=True,
    )
    return known[0], given[:, 0], fillings.view(len(given), 2, 28, 28)

"""Trainings that are known to work: each a function from data to a trained model."""

import os
from pathlib import Path

from torch import Tensor

from fastgen.models import RBM
from fastgen.training.loop import train

LEARNING_RATES = (0.01, 0.01 / 3, 0.01 / 9)


def rbm_of_digits(
    images: Tensor,
    *,
    hidden: int = 512,
    epochs: int = 20,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> RBM:
    """A Boltzmann machine of binary images, by persistent contrastive divergence.

    The learning rate falls in three stages. Faster training (a higher rate, fewer chains) makes a machine
    whose chains hardly mix; annealing then finds far too small a log Z, and the likelihood that it reports is
    far too good.

    Args:
        images: (N, ...) bool, of handwritten digits.
        hidden: units of the hidden layer.
        epochs: at each of the three learning rates.
        seed: of the initial weights and of the draws.
        out: directory for the machine and, in `stage-0` and so on, for the state of each stage; the same call
            goes on where a training was stopped. None keeps nothing.
        progress: show progress bars.

    Returns:
        The machine, in evaluation mode.
    """
    model = RBM(images.shape[1:], hidden, chains=400, seed=seed)
    model.initialise(images)
    for stage, lr in enumerate(LEARNING_RATES):
        train(
            model,
            images.float(),
            epochs=epochs,
            batch_size=100,
            optimizer="sgd",
            lr=lr,
            ema=0.99,
            validation=0.0,
            seed=stage,
            out=None if out is None else Path(out) / f"stage-{stage}",
            progress=progress,
        )
    if out is not None:
        model.save(out)
    return model.eval()

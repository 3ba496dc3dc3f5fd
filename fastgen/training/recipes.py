"""Trainings that are known to work: each a function from data to a trained model."""

import os
from pathlib import Path

import torch
from torch import Tensor

from fastgen.models import NSF, RBM
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


def flow_of_digits(
    images: Tensor,
    *,
    levels: int = 17,
    steps: int = 600,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> NSF:
    """A neural spline flow of small grey images.

    Args:
        images: (N, ...) uint8, such as those of `fastgen.data.digits`.
        levels: of grey that the images have.
        steps: of 128 images.
        seed: of the order of the images and of the noise that dequantises them.
        out: directory for the state and the flow; the same call goes on where a training was stopped. None
            keeps nothing.
        progress: show a progress bar.

    Returns:
        The flow, in evaluation mode.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = NSF(images.shape[1:], steps=6, hidden=128, blocks=1, levels=levels)
        model.initialise(images[:512])
    train(
        model,
        images,
        steps=steps,
        batch_size=128,
        lr=1e-3,
        weight_decay=0.1,
        ema=0.99,
        validation=0.0,
        seed=seed,
        out=out,
        progress=progress,
    )
    return model.eval()

"""Train a Boltzmann machine on 4,000 digits of MNIST, estimate its likelihood, draw rbm_mnist.png.

    python examples/rbm_mnist.py

Persistent contrastive divergence with a learning rate that falls in three stages; pixels are on above 127.
Faster training (a higher rate, fewer chains) makes a machine whose chains hardly mix; annealing then finds
far too small a log Z, and the likelihood that it reports is far too good.
"""

import argparse

import torch
from PIL import Image

import fastgen
from fastgen import data
from fastgen.models import RBM
from fastgen.training import train

LEARNING_RATES = (0.01, 0.01 / 3, 0.01 / 9)


def train_rbm(images: torch.Tensor, *, hidden: int = 512, epochs: int = 20, progress: bool = True) -> RBM:
    """A machine for images (N, 1, 28, 28) bool, after `epochs` at each learning rate."""
    model = RBM(images.shape[1:], hidden, chains=400)
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
            progress=progress,
        )
    return model.eval()


def main() -> None:
    """Train, judge, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="at each of the three learning rates")
    parser.add_argument("--annealing-steps", type=int, default=5000)
    given = parser.parse_args()
    digits = data.mnist5k()
    model = train_rbm(digits.train > 127, epochs=given.epochs)
    log_z = model.log_partition(seed=0, chains=100, steps=given.annealing_steps)
    nats = model.log_likelihood(digits.test > 127, log_z.value).mean()
    print(f"test log-likelihood {nats:.1f} nats an image, log Z {log_z.value:.1f} +- {log_z.error:.1f}")
    samples = fastgen.sample(model, 64, seed=0, steps=3000, probabilities=True)
    picture = samples.view(8, 8, 28, 28).transpose(1, 2).reshape(8 * 28, 8 * 28)
    Image.fromarray((picture * 255).byte().numpy()).save("rbm_mnist.png")


if __name__ == "__main__":
    main()

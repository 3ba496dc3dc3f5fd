"""Train a Boltzmann machine on 4,000 digits of MNIST, estimate its likelihood, draw rbm_mnist.png.

    python examples/rbm_mnist.py

The recipe is `fastgen.training.recipes.rbm_of_digits`; pixels are on above 127.
"""

import argparse

from PIL import Image

import fastgen
from fastgen import data
from fastgen.training.recipes import rbm_of_digits


def main() -> None:
    """Train, judge, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="at each of the three learning rates")
    parser.add_argument("--annealing-steps", type=int, default=5000)
    given = parser.parse_args()
    digits = data.mnist5k()
    model = rbm_of_digits(digits.train > 127, epochs=given.epochs)
    log_z = model.log_partition(seed=0, chains=100, steps=given.annealing_steps)
    nats = model.log_likelihood(digits.test > 127, log_z.value).mean()
    print(f"test log-likelihood {nats:.1f} nats an image, log Z {log_z.value:.1f} +- {log_z.error:.1f}")
    samples = fastgen.sample(model, 64, seed=0, steps=3000, probabilities=True)
    picture = samples.view(8, 8, 28, 28).transpose(1, 2).reshape(8 * 28, 8 * 28)
    Image.fromarray((picture * 255).byte().numpy()).save("rbm_mnist.png")


if __name__ == "__main__":
    main()

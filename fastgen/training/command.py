"""The command `fastgen train`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from fastgen import data, models
from fastgen.training.loop import train

DATA: dict[str, Callable[[], data.Images]] = {"mnist5k": data.mnist5k, "digits": data.digits}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments on `parser`."""
    parser.add_argument("model", choices=["rbm"], help="family: rbm, a restricted Boltzmann machine")
    parser.add_argument("--data", choices=sorted(DATA), default="mnist5k", help="(default mnist5k)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for checkpoint and model")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the data in all (default 60)")
    parser.add_argument("--hidden", type=int, default=500, help="hidden units (default 500)")
    parser.add_argument("--chains", type=int, default=100, help="persistent chains; 0 for CD-k (default 100)")
    parser.add_argument("--gibbs-steps", type=int, default=5, help="Gibbs steps an update (default 5)")
    parser.add_argument("--batch-size", type=int, default=100, help="(default 100)")
    parser.add_argument("--lr", type=float, default=0.001, help="of AdamW (default 0.001)")
    parser.add_argument("--seed", type=int, default=0, help="decides weights, order and noise (default 0)")


def execute(given: argparse.Namespace) -> int:
    """Train, or go on with the training in DIR, and say where the model is."""
    images = DATA[given.data]()
    model = models.RBM(
        images.train.shape[1:],
        given.hidden,
        chains=given.chains,
        gibbs_steps=given.gibbs_steps,
        seed=given.seed,
    )
    model.initialise(images.train > 127)
    result = train(
        model,
        (images.train > 127).float(),
        epochs=given.epochs,
        batch_size=given.batch_size,
        lr=given.lr,
        ema=0.99,
        validation=0.0,
        seed=given.seed,
        out=given.out,
    )
    print(f"{given.out}: {type(model).__name__} after {result.steps} steps")
    print(f"sample it with: fastgen sample {given.out} -n 100 --format png --out DIR")
    return 0

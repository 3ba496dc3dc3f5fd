"""The command `fastgen train`."""

import argparse
from pathlib import Path

from fastgen import models
from fastgen.options import name_and_value
from fastgen.training.flows import DATASETS, FAMILIES, Dataset, batch_of, held_out, new_flow
from fastgen.training.loop import train

RBM_ONLY = {"hidden": 500, "chains": 100, "gibbs_steps": 5}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments on `parser`."""
    parser.add_argument(
        "model", choices=["rbm", *FAMILIES], help="family: a restricted Boltzmann machine, or a flow"
    )
    parser.add_argument("--data", choices=sorted(DATASETS), default="mnist5k", help="(default mnist5k)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for checkpoint and model")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the data in all (default 60)")
    parser.add_argument("--batch-size", type=int, default=100, help="(default 100)")
    parser.add_argument("--lr", type=float, default=0.001, help="of AdamW (default 0.001)")
    parser.add_argument("--seed", type=int, default=0, help="decides weights, order and noise (default 0)")
    rbm = parser.add_argument_group("rbm")
    rbm.add_argument("--hidden", type=int, help="hidden units (default 500)")
    rbm.add_argument("--chains", type=int, help="persistent chains; 0 for CD-k (default 100)")
    rbm.add_argument("--gibbs-steps", type=int, help="Gibbs steps an update (default 5)")
    flow = parser.add_argument_group("flows")
    flow.add_argument("--conditional", action="store_true", help="give the flow the classes of the data")
    flow.add_argument(
        "--option",
        action="append",
        default=[],
        type=name_and_value,
        metavar="NAME=VALUE",
        help="of the model's constructor, e.g. steps=4; may be repeated",
    )


def execute(given: argparse.Namespace) -> int:
    """Train, or go on with the training in DIR, and say where the model is."""
    dataset = DATASETS[given.data]()
    (_train_rbm if given.model == "rbm" else _train_flow)(given, dataset)
    pictures = "--format png " if dataset.levels else ""
    condition = "--option context=CLASS " if given.conditional else ""
    print(f"sample it with: fastgen sample {given.out} -n 100 {pictures}{condition}--out DIR")
    return 0


def _train_rbm(given: argparse.Namespace, dataset: Dataset) -> None:
    if given.option or given.conditional:
        raise ValueError(
            "--option and --conditional go with flows; rbm takes --hidden, --chains, --gibbs-steps"
        )
    if not dataset.levels:
        raise ValueError(f"--data is {given.data!r}, wanted images for an rbm: mnist5k or digits")
    own = {name: getattr(given, name) for name in RBM_ONLY if getattr(given, name) is not None}
    own = RBM_ONLY | own
    images = dataset.train > 127
    model = models.RBM(images.shape[1:], own.pop("hidden"), seed=given.seed, **own)
    model.initialise(images)
    result = _train(given, model, images.float())
    print(f"{given.out}: {type(model).__name__} after {result} steps")


def _train_flow(given: argparse.Namespace, dataset: Dataset) -> None:
    for name in RBM_ONLY:
        if getattr(given, name) is not None:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} goes with the model rbm alone; use --option {name}=...")
    options = dict(given.option)
    model = new_flow(given.model, dataset, conditional=given.conditional, seed=given.seed, **options)
    steps = _train(given, model, batch_of(model, dataset))
    found = held_out(model, dataset)
    each = f"{found.bits_per_dimension:.3f} bits per dimension" if dataset.levels else "in all"
    print(f"{given.out}: {type(model).__name__} after {steps} steps")
    print(f"held-out data: {found.nats:.2f} +- {found.error:.2f} nats, {each}")


def _train(given: argparse.Namespace, model: models.Model, batch: object) -> int:
    """Train `model` on `batch` and return the number of steps."""
    result = train(
        model,
        batch,
        epochs=given.epochs,
        batch_size=given.batch_size,
        lr=given.lr,
        ema=0.99,
        validation=0.0,
        seed=given.seed,
        out=given.out,
    )
    return result.steps

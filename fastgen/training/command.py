"""The command `fastgen train`."""

import argparse
from pathlib import Path

from fastgen import models
from fastgen.options import add_device, check_names, device_of, name_and_value
from fastgen.training import texts
from fastgen.training.flows import DATASETS, FAMILIES, Dataset, batch_of, held_out, new_flow
from fastgen.training.loop import train

RBM_ONLY = {"hidden": 500, "chains": 100, "gibbs_steps": 5}
NOT_OPTIONS = ("works", "steps", "epochs", "batch_size", "lr", "seed", "device", "out", "progress")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments on `parser`."""
    parser.add_argument(
        "model",
        choices=["rbm", *FAMILIES, "transformer"],
        help="family: a restricted Boltzmann machine, a flow, or a transformer of characters",
    )
    known = ", ".join([*sorted(DATASETS), *texts.TEXTS])
    parser.add_argument(
        "--data", help=f"{known}, or a file of text (default mnist5k, of a transformer shakespeare)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for checkpoint and model")
    parser.add_argument(
        "--epochs", type=int, help="passes over the data in all (default 60; of a transformer see --steps)"
    )
    parser.add_argument(
        "--steps", type=int, help=f"in all, instead of --epochs (of a transformer default {texts.STEPS})"
    )
    parser.add_argument(
        "--batch-size", type=int, help=f"(default 100; of a transformer {texts.BATCH_SIZE} stretches of text)"
    )
    parser.add_argument("--lr", type=float, help=f"of AdamW (default 0.001; of a transformer {texts.LR})")
    parser.add_argument("--seed", type=int, default=0, help="decides weights, order and noise (default 0)")
    add_device(parser)
    rbm = parser.add_argument_group("rbm")
    rbm.add_argument("--hidden", type=int, help="hidden units (default 500)")
    rbm.add_argument("--chains", type=int, help="persistent chains; 0 for CD-k (default 100)")
    rbm.add_argument("--gibbs-steps", type=int, help="Gibbs steps an update (default 5)")
    flow = parser.add_argument_group("flows and transformers")
    flow.add_argument("--conditional", action="store_true", help="give the flow the classes of the data")
    flow.add_argument(
        "--option",
        action="append",
        default=[],
        type=name_and_value,
        metavar="NAME=VALUE",
        help="of the model's constructor, e.g. steps=4 of a flow, layers=2 of a transformer; may be repeated",
    )


def execute(given: argparse.Namespace) -> int:
    """Train, or go on with the training in DIR, and say where the model is."""
    device_of(given.device)
    if given.model == "transformer":
        _train_transformer(given)
        print(f'sample it with: fastgen sample {given.out} --prompt "..."')
        return 0
    given.data = "mnist5k" if given.data is None else given.data
    if given.data not in DATASETS:
        raise ValueError(f"--data is {given.data!r}, wanted one of {', '.join(sorted(DATASETS))}")
    dataset = DATASETS[given.data]()
    (_train_rbm if given.model == "rbm" else _train_flow)(given, dataset)
    pictures = "--format png " if dataset.levels else ""
    condition = "--context CLASS " if given.conditional else ""
    print(f"sample it with: fastgen sample {given.out} -n 100 {pictures}{condition}--out DIR")
    return 0


def _train_transformer(given: argparse.Namespace) -> None:
    _refuse_rbm_only(given)
    if given.conditional:
        raise ValueError("--conditional goes with flows")
    options = dict(given.option)
    check_names("transformer", texts.transformer_of_characters, options, but=NOT_OPTIONS)
    works = texts.works_of("shakespeare" if given.data is None else given.data)
    chosen = {"batch_size": given.batch_size, "lr": given.lr}
    model = texts.transformer_of_characters(
        works.train.values(),
        steps=given.steps,
        epochs=given.epochs,
        seed=given.seed,
        device=given.device,
        out=given.out,
        **{name: value for name, value in chosen.items() if value is not None},
        **options,
    )
    print(f"{given.out}: Transformer of {model.config['vocabulary']} characters")
    context = model.config["context"]
    tested = [work for work in works.test.values() if len(texts.known_part(model, work)) > context]
    if tested:
        print(f"held-out text: {texts.bits_per_character(model, tested):.3f} bits a character")


def _refuse_rbm_only(given: argparse.Namespace) -> None:
    for name in RBM_ONLY:
        if getattr(given, name) is not None:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} goes with the model rbm alone; use --option {name}=...")


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
    _refuse_rbm_only(given)
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
        model.to(given.device),
        batch,
        steps=given.steps,
        epochs=60 if given.epochs is None and given.steps is None else given.epochs,
        batch_size=100 if given.batch_size is None else given.batch_size,
        lr=0.001 if given.lr is None else given.lr,
        ema=0.99,
        validation=0.0,
        seed=given.seed,
        out=given.out,
    )
    model.cpu()
    return result.steps

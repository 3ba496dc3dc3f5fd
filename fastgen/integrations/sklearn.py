"""scikit-learn's BernoulliRBM, trained and sampled with fastgen."""

import copy
from typing import Any

import numpy as np
import sklearn.neural_network
import torch
from scipy import sparse
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from fastgen import random
from fastgen.integrations import ALREADY, Part, Report
from fastgen.ops.rbm_gibbs import rbm_gibbs
from fastgen.random import Stream

# Below these many multiply-adds of a half step, or weights, scikit-learn itself measured faster.
_SMALL_STEP, _SMALL_WEIGHTS = 1 << 22, 1 << 16
_ARRAYS = ("components_", "intercept_hidden_", "intercept_visible_", "h_samples_")

# It has the name of its base class, from which scikit-learn makes the names of features and what it prints.


class BernoulliRBM(sklearn.neural_network.BernoulliRBM):
    """`sklearn.neural_network.BernoulliRBM` with fastgen's sampling; all else is as there.

    `random_state` governs as before, but where fastgen draws the numbers are others: from it come the seeds
    of fastgen's generator. Small machines and batches are left to the base class.
    """

    def gibbs(self, v: Any) -> np.ndarray:
        """One step of Gibbs sampling, h given v and then v given h.

        Args:
            v: (samples, features), sparse or not; h is drawn given v as it is, whether or not of 0 and 1.

        Returns:
            (samples, features) bool.
        """
        check_is_fitted(self)
        if not hasattr(self, "random_state_"):
            self.random_state_ = check_random_state(self.random_state)
        bits = _dense(v)
        if bits.size * len(self.components_) < _SMALL_STEP or not (
            bits.dtype == bool or bool(((bits == 0) | (bits == 1)).all())
        ):
            return super().gibbs(v)
        start, seed = torch.from_numpy(bits.astype(bool)), _seed(self.random_state_)
        weight, h_bias, v_bias = (
            torch.from_numpy(_readable(array.astype(np.float32, copy=False)))
            for array in (self.components_.T, self.intercept_hidden_, self.intercept_visible_)
        )
        return rbm_gibbs(start, None, weight, v_bias, h_bias, seed=seed).v.numpy()

    def fit(self, X: Any, y: Any = None) -> "BernoulliRBM":
        """Fit to X (samples, features), sparse or not; updates in float32, attributes in X's dtype."""
        self._fitting: Any = None
        try:
            return super().fit(X, y)
        finally:
            if (dtype := self.__dict__.pop("_fitting")) is not None:
                self._to(dtype)

    def _fit(self, v_pos: Any, rng: np.random.RandomState) -> None:
        """One update by persistent contrastive divergence, as in the base class, in two products less."""
        for name in _ARRAYS:
            if not getattr(self, name).flags.writeable:  # such as a file that joblib has mapped
                setattr(self, name, np.copy(getattr(self, name)))
        if self.components_.size < _SMALL_WEIGHTS:
            return super()._fit(v_pos, rng)
        if "_fitting" in self.__dict__ and self.components_.dtype != np.float32:
            self._fitting = self.components_.dtype  # which fit restores
            self._to(np.float32)
        weight, c, b, h = (
            torch.from_numpy(array)
            for array in (
                self.components_.T,
                self.intercept_hidden_,
                self.intercept_visible_,
                self.h_samples_,
            )
        )
        # PyTorch has no strides below zero, which NumPy gives to what was turned over.
        positive = torch.tensor(np.ascontiguousarray(_dense(v_pos)), dtype=weight.dtype)
        count, seed = len(positive), _seed(rng)
        negative = _draw(torch.addmm(b, h, weight.T).sigmoid_(), seed, step=0)
        v = torch.cat([positive, negative.to(weight.dtype)])
        mean = torch.addmm(c, v, weight).sigmoid_()
        h.copy_(_draw(mean[count:], seed, step=1))
        # The negative phase enters with a minus sign in one of the two factors.
        rate = self.learning_rate / count
        b.add_(v[:count].sum(0) - v[count:].sum(0), alpha=rate)
        c.add_(mean[:count].sum(0) - mean[count:].sum(0), alpha=rate)
        mean[count:].neg_()
        weight.addmm_(v.T, mean, alpha=rate)

    def _to(self, dtype: Any) -> None:
        for name in _ARRAYS:
            if hasattr(self, name):
                setattr(self, name, getattr(self, name).astype(dtype, copy=False))


def accelerate(model: Any) -> tuple[Any, Report]:
    """The accelerated copy of a BernoulliRBM or a Pipeline, and the report."""
    report = Report([], [])
    return _accelerate(model, "", report), report


def _accelerate(model: Any, path: str, report: Report) -> Any:
    name = f"{path}{type(model).__name__}"
    if type(model) is sklearn.neural_network.BernoulliRBM:
        report.replaced.extend(
            [
                Part(
                    f"{name}.gibbs",
                    "rbm_gibbs, float32, where rows of 0 and 1 and weights are many; else as it was",
                ),
                Part(
                    f"{name}.fit",
                    f"PCD with fastgen's draws, updates in float32, from {_SMALL_WEIGHTS} weights on; sparse"
                    " batches are made dense",
                ),
                Part(f"{name}.partial_fit", "the same in float64"),
            ]
        )
        report.kept.extend(
            [
                Part(f"{name}.transform", "one product of the library already; equal values"),
                Part(f"{name}.score_samples", "two products of the library already; equal values"),
            ]
        )
        new = BernoulliRBM()
        new.__dict__ = copy.deepcopy(model.__dict__)
        return new
    if isinstance(model, Pipeline):
        new = copy.deepcopy(model)  # fitting it must not fit the steps of the original
        new.steps = [(step, _accelerate(part, f"{path}{step}: ", report)) for step, part in new.steps]
        return new
    why = ALREADY if isinstance(model, BernoulliRBM) else "fastgen has nothing for it"
    report.kept.append(Part(name, why))
    return model


def _dense(v: Any) -> np.ndarray:
    return v.toarray() if sparse.issparse(v) else np.asarray(v)


def _readable(array: np.ndarray) -> np.ndarray:
    """PyTorch warns of arrays that may not be written, such as a file that joblib has mapped."""
    return array if array.flags.writeable else array.copy()


def _draw(p: torch.Tensor, seed: int, *, step: int) -> torch.Tensor:
    """Bool (B, n), true with the probabilities p."""
    ids = torch.arange(len(p))
    return random.uniform(seed, ids, step=step, n=p.shape[1], stream=Stream.RBM_GIBBS) < p


def _seed(rng: np.random.RandomState) -> int:
    return int(rng.randint(2**63 - 1, dtype=np.int64))
